//! Whose folder it is, and how often it was started, across openings.

use super::*;

fn settled(cluster: &str) -> Belongs {
    Belongs::Settled { cluster: cluster.to_owned(), founding: Vec::new() }
}

#[test]
fn an_identity_survives_reopening_and_incarnations_only_grow() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("n1");
    let mut identity = Identity::open(&dir).unwrap();
    let node = identity.node();
    assert_eq!((identity.next_incarnation().unwrap(), identity.next_incarnation().unwrap()), (1, 2));
    identity.set_belongs(settled("abc")).unwrap();
    drop(identity);
    let mut identity = Identity::open(&dir).unwrap();
    assert_eq!((identity.node(), identity.cluster().map(String::as_str)), (node, Some("abc")));
    assert_eq!(identity.next_incarnation().unwrap(), 3);
}

#[test]
fn a_second_process_on_a_folder_is_refused_and_told_so() {
    let temp = tempfile::tempdir().unwrap();
    let first = Identity::open(temp.path()).unwrap();
    let Err(Error::Refused(why)) = Identity::open(temp.path()) else { panic!("must be refused") };
    assert!(why.contains("another process"), "{why}");
    drop(first);
    Identity::open(temp.path()).unwrap();
}

#[test]
fn an_empty_folder_beside_a_marker_may_not_form_but_may_join() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("n1");
    Identity::open(&dir).unwrap().set_belongs(settled("abc")).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    for _ in 0..2 {
        Identity::open(&dir).unwrap().next_incarnation().unwrap();
        let why = Identity::open(&dir).unwrap().may_form().unwrap_err().to_string();
        assert!(why.contains("abc") && why.contains("n1.cluster") && why.contains("delete the marker"), "{why}");
    }
    let mut identity = Identity::open(&dir).unwrap();
    identity.set_belongs(settled("abc")).unwrap();
    identity.may_form().unwrap();
}

/// A copy of the folder's only file that says how often it was started.
fn copy(dir: &Path) -> Vec<u8> {
    fs::read(dir.join(FILE)).unwrap()
}

#[test]
fn an_old_copy_of_the_folder_is_refused_unless_the_marker_is_deleted() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("n1");
    let mut identity = Identity::open(&dir).unwrap();
    identity.set_belongs(settled("abc")).unwrap();
    identity.next_incarnation().unwrap();
    let old = copy(&dir);
    identity.next_incarnation().unwrap();
    drop(identity);
    let new = copy(&dir);
    fs::write(dir.join(FILE), &old).unwrap();
    let why = Identity::open(&dir).unwrap_err().to_string();
    assert!(why.starts_with("refused: the data folder") && why.contains("started 1 times, the node 2 times"), "{why}");
    assert!(why.contains("moim node replace") && why.contains("n1.cluster"), "{why}");
    assert_eq!(copy(&dir), old, "it is left as it was");
    fs::write(dir.join(FILE), &new).unwrap();
    drop(Identity::open(&dir).unwrap());
    // Elsewhere there is no marker, and an operator may know better.
    let elsewhere = temp.path().join("n2");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join(FILE), &old).unwrap();
    assert_eq!(Identity::open(&elsewhere).unwrap().next_incarnation().unwrap(), 2);
    fs::write(dir.join(FILE), &old).unwrap();
    fs::remove_file(temp.path().join("n1.cluster")).unwrap();
    assert_eq!(Identity::open(&dir).unwrap().next_incarnation().unwrap(), 2);
}

#[test]
fn a_crash_before_the_marker_was_written_and_an_old_marker_are_no_old_copy() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, marker) = (temp.path().join("n1"), temp.path().join("n1.cluster"));
    Identity::open(&dir).unwrap().set_belongs(settled("abc")).unwrap();
    assert_eq!(fs::read_to_string(&marker).unwrap(), "abc\n");
    let before = fs::read(&marker).unwrap();
    Identity::open(&dir).unwrap().next_incarnation().unwrap();
    assert!(fs::read_to_string(&marker).unwrap().ends_with("incarnation 1 applied 0\n"));
    fs::write(&marker, before).unwrap();
    assert_eq!(Identity::open(&dir).unwrap().next_incarnation().unwrap(), 2);
}

#[test]
fn the_marker_is_beside_the_folder_however_it_is_named() {
    let temp = tempfile::tempdir().unwrap();
    for (i, tail) in [".", "", "x/..", "./."].iter().enumerate() {
        let dir = temp.path().join(format!("n{i}"));
        fs::create_dir_all(&dir).unwrap();
        if *tail == "x/.." {
            fs::create_dir(dir.join(".x")).unwrap();
        }
        Identity::open(dir.join(tail.replace('x', ".x"))).unwrap().set_belongs(settled("abc")).unwrap();
        assert!(temp.path().join(format!("n{i}.cluster")).exists(), "{tail:?}");
        assert!(!dir.join(".cluster").exists());
    }
}

#[test]
fn a_settled_folder_never_changes_its_cluster() {
    let temp = tempfile::tempdir().unwrap();
    let mut identity = Identity::open(temp.path().join("n1")).unwrap();
    identity.set_belongs(settled("abc")).unwrap();
    assert!(identity.set_belongs(settled("xyz")).is_err());
    assert!(identity.set_belongs(Belongs::Nowhere).is_err());
    assert_eq!(identity.cluster().map(String::as_str), Some("abc"));
}

#[test]
fn a_damaged_identity_is_refused_not_replaced() {
    let temp = tempfile::tempdir().unwrap();
    drop(Identity::open(temp.path()).unwrap());
    let path = temp.path().join(FILE);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(Identity::open(temp.path()), Err(Error::Refused(_))));
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_folder_of_somebody_else_is_refused_and_left_as_it_is() {
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(temp.path().join("letter"), "dear").unwrap();
    let why = Identity::open(temp.path()).unwrap_err().to_string();
    assert!(why.starts_with("refused") && why.contains("it holds letter"), "{why}");
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    assert_eq!(fs::metadata(temp.path()).unwrap().permissions().mode() & 0o777, 0o755);
    // The root of a disk, and a first start that was cut short.
    fs::remove_file(temp.path().join("letter")).unwrap();
    for name in ["lost+found", "reserve", "identity.tmp"] {
        fs::write(temp.path().join(name), "").unwrap();
    }
    drop(Identity::open(temp.path()).unwrap());
    fs::write(temp.path().join("letter"), "it came later").unwrap();
    Identity::open(temp.path()).unwrap();
}

#[test]
fn a_folder_that_lost_its_identity_alone_is_not_called_empty() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("n1");
    Identity::open(&dir).unwrap().set_belongs(settled("abc")).unwrap();
    fs::remove_file(dir.join(FILE)).unwrap();
    for name in MADE_LATER {
        let inside = dir.join(name).join("1");
        fs::create_dir_all(dir.join(name).join(FOUND)).unwrap();
        Identity::open(&dir).unwrap();
        fs::remove_file(dir.join(FILE)).unwrap();
        fs::write(&inside, "").unwrap();
        let why = Identity::open(&dir).unwrap_err().to_string();
        assert!(why.starts_with("refused") && why.contains("lost its file identity") && why.contains(name), "{why}");
        assert!(why.contains("Put the file back") && !dir.join(FILE).exists(), "{why}");
        fs::remove_file(inside).unwrap();
    }
}

#[test]
fn only_the_owner_can_read_folder_and_files() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("n1");
    Identity::open(&dir).unwrap().set_belongs(settled("abc")).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for path in [dir.join(FILE), dir.join(LOCK), marker::path(&dir)] {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}
