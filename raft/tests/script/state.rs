//! The language of the state machine's scripts.
//!
//! A command is proposed by the node that holds its session (`from=N` says another), in a batch of its own. Its position and
//! reply are followed by its effects (`»`) and by the keys that came (`+`), changed (`~`) and went (`-`).

use std::{collections::BTreeMap, error::Error};

use goldenscript::{ArgumentConsumer, Command as Line, Runner};
use moim_raft::{
    command::{Batch, Command, Generation, Holder, Limits, Namespace, NodeInfo, Position, Room, Sid, User},
    state::{Outcome, State, replay::ReplayLimit},
};

use super::{keys, words};

pub struct StateScript {
    state: State,
    stamp: u64,
    /// Incarnation and last sequence of each node.
    nodes: BTreeMap<u64, (u64, u64)>,
    last: Option<Batch>,
}

impl Default for StateScript {
    fn default() -> Self {
        Self { state: State::default(), stamp: words::NOW, nodes: BTreeMap::new(), last: None }
    }
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What a line says, word by word.
struct Words<'a>(ArgumentConsumer<'a>);

impl Words<'_> {
    fn next(&mut self, what: &str) -> Result<String> {
        Ok(self.0.next_pos().ok_or_else(|| format!("{what} is missing"))?.value.clone())
    }

    fn number(&mut self, what: &str) -> Result<u64> {
        Ok(self.next(what)?.parse()?)
    }

    fn node(&mut self) -> Result<u64> {
        Ok(self.next("a node")?.trim_start_matches('n').parse()?)
    }

    fn room(&mut self) -> Result<Room> {
        Ok(Room::new(self.next("a room")?).ok_or("not a room")?)
    }

    fn user(&mut self) -> Result<User> {
        user(&self.next("a user")?)
    }

    fn flag(&mut self, name: &str) -> bool {
        self.0.rest_pos().iter().any(|word| word.value == name)
    }

    fn lookup(&mut self, key: &str) -> Option<String> {
        self.0.lookup(key).map(|argument| argument.value.clone())
    }
}

fn ns() -> Namespace {
    Namespace::new("/").expect("a name")
}

fn user(name: &str) -> Result<User> {
    Ok(User::new(name).ok_or("not a user")?)
}

fn sid(name: &str) -> Result<Sid> {
    Ok(Sid::parse(&format!("{name:_<20}")).ok_or("not a session")?)
}

fn pid(name: &str) -> [u8; 32] {
    let mut pid = [0; 32];
    pid[..name.len()].copy_from_slice(name.as_bytes());
    pid
}

impl StateScript {
    /// A session as somebody sees it now, or saw it (`generation=`).
    fn holder(&self, words: &mut Words) -> Result<Holder> {
        let sid = sid(&words.next("a session")?)?;
        let now = self.state.session(&sid).map_or(1, |session| session.generation);
        let generation: Generation = words.lookup("generation").map_or(Ok(now), |text| text.parse())?;
        Ok(Holder { sid, generation })
    }

    fn holders(&self, words: &mut Words) -> Result<Vec<Holder>> {
        let mut holders = vec![self.holder(words)?];
        while let Ok(holder) = self.holder(words) {
            holders.push(holder);
        }
        Ok(holders)
    }

    /// The command that a line stands for, and who proposes it if that is not said.
    fn command(&self, line: &str, words: &mut Words) -> Result<Option<(u64, Command)>> {
        let held = |by: &Holder| self.state.session(&by.sid).map_or(1, |session| session.node);
        let in_room = |words: &mut Words, command: fn(Holder, Room) -> Command| -> Result<(u64, Command)> {
            let by = self.holder(words)?;
            Ok((held(&by), command(by, words.room()?)))
        };
        Ok(Some(match line {
            "down" => {
                let node = words.node()?;
                let now = self.nodes.get(&node).map_or(0, |(incarnation, _)| *incarnation);
                let incarnation = words.lookup("incarnation").map_or(Ok(now), |text| text.parse())?;
                (1, Command::Down { node, incarnation })
            }
            "remove" => (1, Command::Removed { node: words.node()? }),
            "open" => {
                let name = words.next("a session")?;
                let (user, guest) = (words.user()?, words.flag("guest"));
                (1, Command::Open { sid: sid(&name)?, ns: ns(), user, guest, pid: pid(&name) })
            }
            "resume" => {
                let read = self.holder(words)?;
                let whose = self.state.session(&read.sid).map(|session| session.user);
                let user = words.lookup("user").map_or(whose.ok_or("whose?".into()), |name| user(&name))?;
                let pid = pid(&words.lookup("pid").unwrap_or_else(|| words::session(&read.sid).to_owned()));
                (1, Command::Resume { read, ns: ns(), user, pid })
            }
            "lose" => (1, Command::Lost(self.holders(words)?)),
            "expire" => (1, Command::Expire(self.holders(words)?)),
            "close" => {
                let by = self.holder(words)?;
                (held(&by), Command::Close(by))
            }
            "join" => in_room(words, |by, room| Command::Join { by, room })?,
            "leave" => in_room(words, |by, room| Command::Leave { by, room })?,
            "enter" => in_room(words, |by, room| Command::Enter { by, room })?,
            "exit" => in_room(words, |by, room| Command::Exit { by, room })?,
            "say" => {
                let (by, room, text) = (self.holder(words)?, words.room()?, words.next("a text")?);
                (held(&by), Command::Publish { by, room, text, mid: words.lookup("mid") })
            }
            "limits" => (1, Command::SetLimits(limits(words)?)),
            "level" => (1, Command::SetLevel(words.number("a level")? as u16)),
            "drain" => (words.node()?, Command::TakeDrain { force: words.flag("force") }),
            "undrain" => {
                let node = words.node()?;
                match words.lookup("incarnation") {
                    Some(incarnation) => (1, Command::Undrain { node, incarnation: incarnation.parse()? }),
                    None => (1, Command::EndDrain { node }),
                }
            }
            "offline" => (1, Command::Offline(self.state.away(&self.state.lost_sessions()))),
            "forget" => (1, Command::ForgetMids(self.state.users_with_old_mids(None, 100).0)),
            "sweep" => (1, Command::Sweep(self.state.stale_rooms(None, 100).0)),
            _ => return Ok(None),
        }))
    }

    fn propose(&mut self, name: &str, node: u64, command: Command) -> Result<String> {
        let (incarnation, sequence) = self.nodes.get_mut(&node).ok_or("that node was not started")?;
        *sequence += 1;
        let (incarnation, sequence) = (*incarnation, *sequence);
        Ok(self.apply(name, Batch { node, incarnation, sequence, stamp: self.stamp, commands: vec![command] }))
    }

    fn apply(&mut self, name: &str, batch: Batch) -> String {
        let before = keys::pairs(&self.state);
        let outcome = self.state.apply(&batch);
        let mut lines = match outcome {
            Outcome::Skipped(why) => vec![format!("{name}: skipped, {why:?}")],
            Outcome::Applied(commands) => commands
                .iter()
                .flat_map(|done| {
                    let reply = format!("{} {name}: {}", done.position.0, words::reply(&done.reply));
                    [reply]
                        .into_iter()
                        .chain(done.effects.iter().map(|effect| format!("  » {}", words::effect(effect))))
                })
                .collect(),
        };
        let changes = keys::changes(&before, &keys::pairs(&self.state));
        // These change with every batch: its node's sequence, and the two counters.
        let starts =
            matches!(batch.commands[..], [Command::Started(_) | Command::Down { .. } | Command::Removed { .. }]);
        // These change with every batch: its node's sequence, and the two counters.
        let of_every_batch = [format!("nodes {}", batch.node), "meta position".to_owned(), "meta clock".to_owned()];
        let told = |change: &String| !of_every_batch[usize::from(starts)..].iter().any(|key| change.ends_with(key));
        lines.extend(changes.into_iter().filter(told).map(|change| format!("  {change}")));
        self.last = Some(batch);
        lines.join("\n")
    }

    fn view(&self, line: &str, words: &mut Words) -> Result<String> {
        let list = |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join("\n") };
        Ok(match line {
            "rooms" => {
                let session = self.state.session(&sid(&words.next("a session")?)?).ok_or("no such session")?;
                words::rooms(&self.state.rooms_of_session(&session))
            }
            "sids" => {
                let sids = self.state.sids_in_room(&ns(), &words.room()?);
                format!("[{}]", sids.iter().map(words::session).collect::<Vec<_>>().join(" "))
            }
            "members" => {
                list(self.state.members(&ns(), &words.room()?, None, 100).iter().map(ToString::to_string).collect())
            }
            "history" => {
                let (found, _) = self.state.history(&ns(), &words.room()?, None, None, 100, |_| true);
                list(found.iter().map(words::entry).collect())
            }
            "replay" => {
                let session = self.state.session(&sid(&words.next("a session")?)?).ok_or("no such session")?;
                let (offset, all) = (words.number("an offset")?, ReplayLimit { entries: 100, bytes: 1 << 20 });
                match self.state.replay(&session, Position(offset), self.state.position(), all) {
                    Ok(due) => {
                        list(due.iter().map(|(room, entry)| format!("{room}: {}", words::entry(entry))).collect())
                    }
                    Err(why) => format!("refused: {}", why.as_str()),
                }
            }
            "lost" => list(self.state.lost_sessions().iter().map(words::holder).collect()),
            "online" => self.state.is_online(&ns(), &words.user()?).to_string(),
            "hash" => format!("{:032x}", self.state.hash()),
            _ => return Err(format!("{line} is no command of these scripts").into()),
        })
    }
}

fn limits(words: &mut Words) -> Result<Limits> {
    let mut limits = Limits::default();
    for argument in words.0.rest_key() {
        let value = argument.parse()?;
        *match argument.name() {
            "history_size" => &mut limits.history_size,
            "history_ttl" => &mut limits.history_ttl_ms,
            "mid_window" => &mut limits.mid_window_ms,
            "mids_per_user" => &mut limits.mids_per_user,
            "rooms_per_user" => &mut limits.rooms_per_user,
            "sessions_per_user" => &mut limits.sessions_per_user,
            "presence_limit" => &mut limits.presence_limit,
            other => return Err(format!("{other} is no limit").into()),
        } = value;
    }
    Ok(limits)
}

impl Runner for StateScript {
    fn run(&mut self, line: &Line) -> Result<String> {
        let mut words = Words(line.consume_args());
        match line.name.as_str() {
            "start" => {
                let node = words.node()?;
                let (incarnation, sequence) = self.nodes.entry(node).or_default();
                (*incarnation, *sequence) = (*incarnation + 1, 0);
                return self.propose("start", node, Command::Started(NodeInfo::default()));
            }
            "wait" => {
                self.stamp += words.number("milliseconds")?;
                return Ok(String::new());
            }
            "again" => {
                let mut batch = self.last.clone().ok_or("there was none before")?;
                batch.sequence += words.lookup("ahead").map_or(Ok(0), |text| text.parse::<u64>())?;
                return Ok(self.apply("again", batch));
            }
            _ => {}
        }
        let from = words.lookup("from").map(|node| node.trim_start_matches('n').parse()).transpose()?;
        match self.command(&line.name, &mut words)? {
            Some((node, command)) => self.propose(&line.name, from.unwrap_or(node), command),
            None => self.view(&line.name, &mut words),
        }
    }
}
