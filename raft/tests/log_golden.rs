//! Logs that released versions have written must open for ever. The folders are kept as they were; never change one.

mod common;

use std::{fs, path::Path};

use common::{Rig, Written, open, options, segments};
use openraft::storage::RaftLogStorage;

/// The history in the golden folder.
async fn history(rig: &mut Rig) {
    rig.vote(1).await;
    rig.append(1, 0..6).await;
    rig.append(1, 6..12).await;
    rig.truncate(9).await;
    rig.vote(2).await;
    rig.append(2, 9..14).await;
    rig.purge(7).await;
    rig.append(2, 14..16).await;
}

#[tokio::test]
async fn the_log_of_format_1_opens() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/log-1");
    let copied = tempfile::tempdir().unwrap();
    for file in fs::read_dir(golden).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copied.path().join(file.file_name())).unwrap();
    }
    let fresh = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(open(fresh.path(), options(400)).unwrap());
    history(&mut rig).await;

    let mut log = open(copied.path(), options(400)).unwrap();
    assert_eq!(Written::of(&log).await, rig.written);
    assert_eq!(log.read_committed().await.unwrap(), Some(common::id(2, 14)));
    assert!(segments(copied.path()).len() > 1);
}

/// Writes the folder for a new format: `MOIM_GOLDEN=<folder> cargo test --test log_golden -- --ignored`.
#[tokio::test]
#[ignore = "run by hand when the format changes"]
async fn write_golden() {
    let dir = std::env::var_os("MOIM_GOLDEN").expect("the folder to write");
    let mut rig = Rig::new(open(Path::new(&dir), options(400)).unwrap());
    history(&mut rig).await;
    rig.log.close().await.unwrap();
}
