//! File systems of a test's own: in an image file, whose copy is what a power cut leaves, or in memory, which fills up.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Set where these tests must not be left out: on a machine that is known to let them mount.
pub const MUST: &str = "MOIM_TEST_MOUNTS";
/// Bytes of an image; holes in it take no room.
const IMAGE_BYTES: u64 = 320 << 20;

/// Why nothing can be mounted here, if so.
///
/// # Panics
/// When it cannot, but [`MUST`] is set.
pub fn unavailable() -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let why = Image::new(dir.path(), "try", "ext4").err()?;
    assert!(std::env::var_os(MUST).is_none(), "{MUST} is set, but {why}");
    Some(format!("SKIPPED, needs root, loop devices and mkfs.ext4: {why}"))
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program} {}: {}", args.join(" "), said.trim())) }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("made by these tests")
}

/// A mounted file system; unmounted when dropped.
pub struct Mount {
    pub path: PathBuf,
}

impl Mount {
    fn new(path: PathBuf, args: &[&str]) -> Result<Self, String> {
        fs::create_dir_all(&path).map_err(|e| e.to_string())?;
        run("mount", &[args, &[text(&path)]].concat())?;
        Ok(Self { path })
    }

    /// In memory, that small.
    pub fn tmpfs(path: PathBuf, size: &str) -> Result<Self, String> {
        Self::new(path, &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
    }

    pub fn resize(&self, size: &str) {
        run("mount", &["-o", &format!("remount,size={size}"), text(&self.path)]).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // What still uses it (a node that a failed test leaves) has its end coming; the mount goes with it.
        if run("umount", &[text(&self.path)]).is_err() {
            _ = run("umount", &["--lazy", text(&self.path)]);
        }
    }
}

/// A file system in a file.
pub struct Image {
    pub mount: Mount,
    file: PathBuf,
    kind: &'static str,
    copies: u32,
}

impl Image {
    /// Makes and mounts one below `dir`.
    pub fn new(dir: &Path, name: &str, kind: &'static str) -> Result<Self, String> {
        let file = dir.join(format!("{name}.img"));
        fs::File::create(&file).and_then(|file| file.set_len(IMAGE_BYTES)).map_err(|e| e.to_string())?;
        run(&format!("mkfs.{kind}"), &["-q", text(&file)])?;
        Self::mounted(file, kind, 0)
    }

    fn mounted(file: PathBuf, kind: &'static str, copies: u32) -> Result<Self, String> {
        // A copy of an XFS has the id of one that is mounted.
        let options = if kind == "xfs" { "loop,nouuid" } else { "loop" };
        let mount = Mount::new(file.with_extension(format!("{copies}")), &["-t", kind, "-o", options, text(&file)])?;
        Ok(Self { mount, file, kind, copies })
    }

    /// What would be on the disk if the power went now: a copy of the file below, as soon as two copies agree, for the
    /// kernel may be writing. Whoever writes into it must be stopped. Not mounted yet.
    pub fn cut(&self) -> Cut {
        let copy = |name: &str| {
            let to = self.file.with_extension(name);
            run("cp", &["--sparse=always", text(&self.file), text(&to)]).unwrap();
            to
        };
        let mut one = copy("one");
        let mut two = copy("two");
        while run("cmp", &["-s", text(&one), text(&two)]).is_err() {
            std::mem::swap(&mut one, &mut two);
            two = copy(two.extension().and_then(|name| name.to_str()).expect("named above"));
        }
        fs::remove_file(two).unwrap();
        Cut(one)
    }

    /// Goes on with what a power cut has left. Nobody may use what is mounted any more.
    pub fn go_on(self, cut: Cut) -> Self {
        let Self { mount, file, kind, copies } = self;
        drop(mount);
        fs::rename(cut.0, &file).unwrap();
        Self::mounted(file, kind, copies + 1).expect("it mounts as it did before")
    }
}

/// A disk whose power was cut.
pub struct Cut(PathBuf);
