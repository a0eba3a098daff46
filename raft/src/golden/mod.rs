//! Golden files: what released versions have written and sent must be understood for ever.
//!
//! `tests/golden/<level>/` has a file for each kind that is stored or sent, with each of its variants in words and in bytes.
//! Every file of every level must decode to those words, and encode to those bytes again; and the files of the level that
//! this program writes must be complete: a variant without a sample fails with its name.
//!
//! `MOIM_GOLDEN=write cargo test -p moim-raft golden` writes the files of the present level. Once a level is released its
//! files are never written again: a change of their bytes is a new variant, a new level, and a new folder.

mod net;
mod stored;

use std::{
    env,
    fmt::Debug,
    fs,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{codec, error::Result, level};

/// Bytes of one line.
const LINE: usize = 48;

/// One kind, with samples of it.
struct Golden<T, E, D> {
    name: &'static str,
    samples: Vec<T>,
    encode: E,
    decode: D,
}

/// A kind whose bytes are bare bincode; its envelope, if any, is another kind.
fn body<T: Serialize + DeserializeOwned + Debug>(name: &'static str, samples: Vec<T>) {
    Golden { name, samples, encode: plain::<T>, decode: codec::from_body::<T> }.check();
}

/// As [`body`], of an enum: each variant must have a sample.
fn variants<T: Serialize + DeserializeOwned + Debug>(name: &'static str, samples: Vec<T>) {
    let seen: Vec<u8> = samples.iter().map(|sample| plain(sample)[0]).collect();
    let missing: Vec<u8> = (0..count::<T>()).filter(|variant| !seen.contains(variant)).collect();
    assert!(
        missing.is_empty(),
        "{name}: variants {missing:?} have no sample: add them in raft/src/golden, then {}",
        how_to()
    );
    body(name, samples);
}

fn plain<T: Serialize>(value: &T) -> Vec<u8> {
    codec::body(value).expect("plain data")
}

impl<T: Debug, E: Fn(&T) -> Vec<u8>, D: Fn(&[u8]) -> Result<T>> Golden<T, E, D> {
    fn check(self) {
        let text: String = self.samples.iter().map(|sample| paragraph(sample, &(self.encode)(sample))).collect();
        let now = folder().join(level::KNOWN.max.to_string());
        let path = now.join(format!("{}.txt", self.name));
        if env::var_os("MOIM_GOLDEN").is_some_and(|what| what == "write") {
            fs::create_dir_all(&now).expect("a folder");
            fs::write(&path, &text).expect("a golden file");
        }
        let written = read(self.name, &path);
        assert!(
            written == text,
            "{} is not written as before. What is stored or sent only grows at its end: make it a new variant. If no version \
             with these bytes was released yet, {}\n--- {}\n{written}\n+++ now\n{text}",
            self.name,
            how_to(),
            path.display(),
        );
        self.check_all_levels();
    }

    /// What any level has written is understood, and written again as it was.
    fn check_all_levels(&self) {
        for level in fs::read_dir(folder()).expect("the golden folder").flatten() {
            let path = level.path().join(format!("{}.txt", self.name));
            let Ok(text) = fs::read_to_string(&path) else { continue };
            for sample in text.split("\n\n").filter(|sample| !sample.is_empty()) {
                let (words, hex) = sample.split_once('\n').expect("words above bytes");
                let bytes = bytes(hex);
                let value = (self.decode)(&bytes).unwrap_or_else(|e| panic!("{}: {words}: {e}", path.display()));
                assert_eq!(format!("{value:?}"), words, "{}", path.display());
                assert_eq!((self.encode)(&value), bytes, "{}: {words}", path.display());
            }
        }
    }
}

fn read(name: &str, path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|_| panic!("{name} has no golden file: {}", how_to()))
}

fn how_to() -> &'static str {
    "write it with `MOIM_GOLDEN=write cargo test -p moim-raft golden`"
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn paragraph(sample: &impl Debug, bytes: &[u8]) -> String {
    let lines = bytes.chunks(LINE).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect());
    format!("{sample:?}\n  {}\n\n", lines.collect::<Vec<String>>().join("\n  "))
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("two digits");
    digits.chunks(2).map(byte).collect()
}

/// How many variants an enum has, from what serde says of one that it cannot have.
fn count<T: DeserializeOwned + Debug>() -> u8 {
    let why = codec::from_body::<T>(&[250]).expect_err("no enum here has 251 variants").to_string();
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let count = why.rsplit("i < ").next().and_then(|rest| digits(rest).parse().ok());
    count.unwrap_or_else(|| panic!("not an enum: {why}"))
}

#[test]
fn a_forgotten_variant_is_noticed() {
    #[derive(Debug, Serialize, serde::Deserialize)]
    enum Grown {
        Old,
        New(u8),
    }
    assert_eq!(count::<Grown>(), 2);
    let Err(panic) = std::panic::catch_unwind(|| variants("grown", vec![Grown::Old])) else {
        panic!("must be noticed")
    };
    let why = panic.downcast::<String>().expect("a text");
    assert!(why.contains("grown: variants [1] have no sample") && why.contains("MOIM_GOLDEN=write"), "{why}");
    let missing = std::panic::catch_unwind(|| read("grown", Path::new("no such file")));
    let why = missing.expect_err("there is no such file").downcast::<String>().expect("a text");
    assert!(why.contains("grown has no golden file: write it with"), "{why}");
}
