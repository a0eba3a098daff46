//! Power cuts: what a node has acknowledged is on its disk, not only in the kernel's memory.
//!
//! Each node has a file system of its own, in an image that is mounted by a loop device. The node is stopped while it
//! writes, the image is copied, and the node goes on with the copy: what had not reached the image when it was stopped is
//! gone, as by a power cut.
//!
//! Needs root and loop devices; says so and passes where it has none, unless `MOIM_TEST_MOUNTS` is set. More cuts than CI's:
//! `scripts/power-cut.sh`.

mod process;

use std::time::Duration;

use process::{
    Fleet, Load, Options,
    mount::{self, Image},
    random::Random,
};
use tempfile::TempDir;
use tokio::time::sleep;

#[test]
fn process_node() {
    process::enter();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_power_cuts() {
    if let Some(why) = mount::unavailable() {
        return eprintln!("{why}");
    }
    let cuts = std::env::var("MOIM_POWER_CUTS").map_or(15, |text| text.parse().expect("a number"));
    let seed = std::env::var("MOIM_POWER_SEED").map_or(1, |text| text.parse().expect("a number"));
    // Where there is no XFS, all is ext4's.
    let dir = tempfile::tempdir().unwrap();
    let on_xfs = if Image::new(dir.path(), "try", "xfs").is_ok() { cuts / 3 } else { 0 };
    for (kind, cuts) in [("ext4", cuts - on_xfs), ("xfs", on_xfs)] {
        let mut left = cuts;
        let mut seed = seed;
        while left > 0 {
            eprintln!("{kind}: MOIM_POWER_SEED={seed}, {left} cuts to come");
            // A fresh cluster now and then: what it has written is never trimmed.
            let some = left.min(30);
            let mut power = Power::new(kind, seed).await;
            for n in 0..some {
                power.cut([Cut::One, Cut::Two, Cut::All][n % 3]).await;
            }
            power.fleet.close().await;
            (left, seed) = (left - some, seed + 1);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    One,
    Two,
    All,
}

struct Power {
    fleet: Fleet,
    /// Unmounted after the nodes have gone.
    disks: Vec<Option<Image>>,
    random: Random,
    _dir: TempDir,
}

impl Power {
    async fn new(kind: &'static str, seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disks: Vec<Image> = (0..3).map(|i| Image::new(dir.path(), &format!("n{i}"), kind).unwrap()).collect();
        let data = disks.iter().map(|disk| disk.mount.path.join("data")).collect();
        let load = Load { proposers: 4, pause: 1, ..Load::default() };
        let options = Options { load, snapshot_every: 100, data: Some(data), ..Options::default() };
        let disks = disks.into_iter().map(Some).collect();
        Self { fleet: Fleet::new(options).await, disks, random: Random::new(seed), _dir: dir }
    }

    /// Cuts the power of some nodes, so that what was acknowledged last rests on their disks alone.
    async fn cut(&mut self, cut: Cut) {
        self.fleet.load_all().await;
        let leader = self.fleet.leader().await;
        let first = self.random.below(3) as usize;
        let (second, third) = ((first + 1) % 3, (first + 2) % 3);
        if self.random.below(3) == 0 {
            self.fleet.node(leader).tell("transfer").await;
        }
        let before = self.fleet.acked();
        let victims = match cut {
            Cut::All => vec![first, second, third],
            // Nothing reaches the third any more: a quorum is these two.
            Cut::One => {
                self.fleet.links().set_all_of(third, process::proxy::Mode::Hold);
                vec![first]
            }
            Cut::Two => {
                self.fleet.links().set_all_of(third, process::proxy::Mode::Hold);
                vec![first, second]
            }
        };
        let more = self.random.between(50, 150) as usize;
        self.fleet.acked_more(more).await;
        sleep(Duration::from_millis(self.random.below(200))).await;

        victims.iter().for_each(|i| self.fleet.node(*i).signal("STOP"));
        let cuts: Vec<mount::Cut> = victims.iter().map(|i| self.disks[*i].as_ref().unwrap().cut()).collect();
        for (i, cut) in victims.iter().zip(cuts) {
            self.fleet.kill(*i).await;
            let disk = self.disks[*i].take().unwrap().go_on(cut);
            self.fleet.data[*i] = disk.mount.path.join("data");
            self.disks[*i] = Some(disk);
        }
        // The other half of that quorum does not come to help.
        if let Cut::One = cut {
            self.fleet.kill(second).await;
        }
        self.fleet.links().heal();
        for i in &victims {
            let started = self.fleet.start(*i).await;
            started.unwrap_or_else(|why| panic!("{cut:?}: node {i} does not start after a power cut: {why}"));
        }
        self.fleet.all_started().await;
        self.fleet.unload_all().await;
        self.fleet.agree().await;
        let acked = self.fleet.acked() - before;
        eprintln!("{cut:?} of {victims:?}: {acked} acknowledged since the last one, all there");
        if let Cut::One = cut {
            self.fleet.start(second).await.expect("its disk is well");
            self.fleet.all_started().await;
        }
    }
}
