//! The language of the snapshot's scripts: a state on a disk, beside the same one in memory.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use goldenscript::{Command as Line, Runner};
use moim_raft::{
    command::{Batch, Command, Holder, Namespace, NodeInfo, Room, Sid, User},
    level::Levels,
    snapshot::Reading,
    state::State,
};

use super::{keys, words};
use crate::disk::Disk;

pub struct SnapshotScript {
    memory: State,
    disk: Disk,
    sequence: u64,
    newest: Option<PathBuf>,
}

impl Default for SnapshotScript {
    fn default() -> Self {
        Self { memory: State::default(), disk: Disk::new(), sequence: 0, newest: None }
    }
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

impl SnapshotScript {
    fn apply(&mut self, command: Command) {
        self.sequence += 1;
        let (sequence, stamp) = (self.sequence, words::NOW);
        let batch = Batch { node: 1, incarnation: 1, sequence, stamp, commands: vec![command] };
        let outcome = self.memory.apply(&batch);
        self.disk.apply(&batch, &outcome);
    }

    fn say(&mut self, text: &str) {
        let (sid, room) = (Sid::parse("phone_______________").expect("a sid"), Room::new("lobby").expect("a name"));
        let by = Holder { sid: sid.clone(), generation: 1 };
        if self.sequence == 0 {
            let (ns, user) = (Namespace::new("/").expect("a name"), User::new("ann").expect("a name"));
            // As the first version has it: what these scripts say of hashes holds for every later one.
            let info = NodeInfo { levels: Levels { min: 1, max: 1 }, ..NodeInfo::default() };
            self.apply(Command::Started(info));
            self.apply(Command::Open { sid, ns, user, guest: false, pid: [b'p'; 32] });
            self.apply(Command::Join { by: by.clone(), room: room.clone() });
        }
        self.apply(Command::Publish { by, room, text: text.to_owned(), mid: None });
    }

    /// What disk and memory agree on.
    fn same(&mut self) -> String {
        self.disk.compare(&self.memory);
        format!("position {}, hash {:032x}", self.memory.position().0, self.memory.hash())
    }

    fn newest(&self) -> Result<&Path> {
        Ok(self.newest.as_deref().ok_or("there is no snapshot yet")?)
    }
}

/// A file's parts as they lie in it, and the pairs in them.
fn parts(path: &Path) -> Result<String> {
    let mut lines = Vec::new();
    let bytes = fs::read(path)?;
    let mut rest = &bytes[..];
    while let Some((length, after)) = rest.split_first_chunk() {
        let (envelope, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        let part = ["header", "rows", "end"][usize::from(envelope[10])];
        lines.push(format!("{part}: format {}, kind {}, {} bytes", envelope[0], envelope[1], envelope.len() - 10));
        rest = after;
    }
    let reading = Reading::open(path)?;
    let (index, pairs) = (reading.point().index().unwrap_or(0), reading.point().pairs);
    lines.push(format!("index {index}, {pairs} pairs, hash {:032x}", reading.point().hash));
    reading.for_each(|key, value| {
        lines.push(format!("  {}: {} bytes", keys::in_words(key), value.len()));
        Ok(())
    })?;
    Ok(lines.join("\n"))
}

fn name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let numbers: Vec<&str> = stem.split('-').skip(1).map(|number| number.trim_start_matches('0')).collect();
    format!("snapshot of index {} in term {}", numbers[0], numbers[1])
}

impl Runner for SnapshotScript {
    fn run(&mut self, line: &Line) -> Result<String> {
        let mut args = line.consume_args();
        let mut number = || -> Result<usize> { Ok(args.next_pos().ok_or("a number is missing")?.value.parse()?) };
        Ok(match line.name.as_str() {
            "say" => {
                line.args.iter().for_each(|text| self.say(&text.value));
                self.same()
            }
            "snapshot" => {
                let path = self.disk.snapshot();
                let name = name(&path);
                self.newest = Some(path);
                name
            }
            "files" => {
                let folder = self.newest()?.parent().expect("its folder");
                let mut files: Vec<PathBuf> = fs::read_dir(folder)?.map(|file| file.unwrap().path()).collect();
                files.sort();
                files.iter().map(|path| name(path)).collect::<Vec<_>>().join("\n")
            }
            "parts" => parts(self.newest()?)?,
            "install" => {
                self.disk.install();
                self.same()
            }
            "restart" => {
                self.disk.restart();
                self.same()
            }
            "lose-overlay" => {
                self.disk.lose_overlay();
                self.same()
            }
            // A copy is damaged: what is read is the file as it would be.
            "cut" | "flip" => {
                let path = self.newest()?;
                let (mut bytes, at) = (fs::read(path)?, number()?);
                let copy = path.with_extension("damaged");
                if line.name == "cut" {
                    bytes.truncate(bytes.len() - at);
                } else {
                    bytes[at] ^= 1;
                }
                fs::write(&copy, bytes)?;
                let read = Reading::open(&copy).and_then(|reading| reading.for_each(|_, _| Ok(())));
                fs::remove_file(&copy)?;
                let why = read.err().ok_or("it was read all the same")?.to_string();
                // Without the folder, which is another one each time.
                why.replace(&copy.display().to_string(), "the file")
            }
            other => return Err(format!("{other} is no command of these scripts").into()),
        })
    }
}
