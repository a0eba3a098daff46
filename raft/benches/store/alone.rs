//! What one command costs without a cluster around it: encoding, decoding and applying, on one thread.

use std::time::Instant;

use moim_raft::{
    codec::{self, Kind},
    command::{Batch, Command, NodeInfo},
    state::State,
};

use crate::load;

/// About as many commands as a batch of 256 proposers holds.
const BATCH: u64 = 128;

/// Microseconds of each command.
pub struct Cost {
    pub encode: f64,
    pub decode: f64,
    pub apply: f64,
}

/// Joins of 8192 users, in the same order as [`load::join`].
pub fn join(batches: u64) -> Cost {
    let mut state = State::default();
    let mut sequence = 1;
    let mut batch = |commands| {
        let batch = Batch { node: 1, incarnation: 1, sequence, stamp: sequence, commands };
        sequence += 1;
        batch
    };
    state.apply(&batch(vec![Command::Started(NodeInfo::default())]));
    state.apply(&batch(vec![Command::SetLimits(Default::default())]));
    state.apply(&batch((0..8192).map(load::open_one).collect()));
    let mut cost = Cost { encode: 0.0, decode: 0.0, apply: 0.0 };
    for nth in 0..batches {
        let one = |n: u64| load::join_one(n % 8192, n / 8192);
        let commands = batch((nth * BATCH..(nth + 1) * BATCH).map(one).collect());
        let encoded = timed(&mut cost.encode, || codec::encode(Kind::Batch, &commands).expect("it is plain data"));
        let decoded: Batch = timed(&mut cost.decode, || codec::decode(Kind::Batch, &encoded).expect("as it was"));
        timed(&mut cost.apply, || state.apply(&decoded));
    }
    let commands = (batches * BATCH) as f64;
    Cost { encode: cost.encode / commands, decode: cost.decode / commands, apply: cost.apply / commands }
}

fn timed<T>(sum: &mut f64, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    *sum += begun.elapsed().as_secs_f64() * 1e6;
    done
}
