//! Traps that others have fallen into, what this crate does about each, and the tests that show it.
//!
//! Most are from the issue trackers and guides of openraft, sled and etcd. A test named here must exist: a renamed one is
//! noticed below. A trap without a test is not in the table.

mod cluster;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use cluster::{Cluster, say};

struct Trap {
    trap: &'static str,
    design: &'static str,
    /// File below `raft`, and test.
    shown_by: &'static [(&'static str, &'static str)],
}

const TRAPS: &[Trap] = &[
    Trap {
        trap: "a database's flush is not durable",
        design: "log, vote and snapshot files hold the truth; sled is derived, proved by its hash, and rebuilt",
        shown_by: &[
            ("tests/store.rs", "after_a_stop_of_all_the_state_is_there_and_nothing_is_played_again"),
            ("tests/log_writes.rs", "a_killed_process_loses_nothing_acknowledged"),
            ("tests/power.rs", "what_was_acknowledged_survives_power_cuts"),
        ],
    },
    Trap {
        trap: "a vote is not synced, or reordered with entries",
        design: "votes are records in the same stream as entries; one flusher, callbacks in order",
        shown_by: &[
            ("tests/log_writes.rs", "what_gathers_during_a_sync_is_synced_at_once_and_answered_in_order"),
            ("tests/log_damage.rs", "everything_is_there_after_closing_and_after_a_kill"),
            ("tests/conformance.rs", "openrafts_suite_passes"),
            ("tests/crash.rs", "a_node_that_is_killed_at_a_named_point_loses_nothing"),
            ("tests/power.rs", "what_was_acknowledged_survives_power_cuts"),
        ],
    },
    Trap {
        trap: "a responder that is kept leaves its caller waiting for ever",
        design: "a ticket that is dropped without an answer says `unavailable`",
        shown_by: &[
            ("src/propose/tests.rs", "every_ticket_is_answered_whatever_ends_the_wait"),
            ("tests/store.rs", "a_ticket_is_answered_once_when_the_player_comes_to_it"),
            ("tests/store.rs", "a_node_closes_although_nobody_works_its_feed_off"),
        ],
    },
    Trap {
        trap: "a restarted node serves an older state than before",
        design: "it starts its incarnation after a linearizable read of its own",
        shown_by: &[
            ("tests/store.rs", "writes_go_on_without_one_node_and_it_catches_up"),
            ("tests/members.rs", "a_restarted_node_serves_nothing_older_than_it_served_before"),
        ],
    },
    Trap {
        trap: "a leader that restarts leads on without an election",
        design: "openraft's leader restore is off",
        shown_by: &[("tests/traps.rs", "a_leader_that_restarts_is_elected_again")],
    },
    Trap {
        trap: "a wiped disk comes back under its old id",
        design: "the id is made with the folder; a marker beside it tells an emptied folder from a new one",
        shown_by: &[
            ("tests/form.rs", "a_lost_folder_alone_is_refused_with_what_to_do"),
            ("tests/form.rs", "folders_lost_beside_their_markers_form_nothing_and_one_may_join"),
            ("src/identity/tests.rs", "a_damaged_identity_is_refused_not_replaced"),
            ("tests/members.rs", "a_wiped_disk_with_the_old_name_is_a_new_id_a_learner_and_says_why_twice_in_a_row"),
        ],
    },
    Trap {
        trap: "a node id is used again",
        design: "the row of a removed node stays, and nothing starts under it",
        shown_by: &[
            ("tests/store.rs", "a_removed_node_says_so_and_proposes_nothing_more"),
            ("tests/scripts.rs", "what_each_command_does_is_what_the_scripts_say"),
            ("tests/members.rs", "the_old_folder_of_a_removed_node_is_refused_and_an_empty_one_is_a_new_node"),
        ],
    },
    Trap {
        trap: "a cluster is initialised twice, or differently by two nodes",
        design: "forming is a two-phase commit of the expected nodes, each step on disk before it is told",
        shown_by: &[
            ("tests/form.rs", "three_nodes_form_one_cluster_in_every_order_of_starts"),
            ("tests/form.rs", "two_founders_that_share_only_one_member_make_one_cluster"),
            ("tests/form.rs", "random_restarts_while_forming_make_one_cluster"),
        ],
    },
    Trap {
        trap: "an address leads to another node, or to oneself",
        design: "the handshake carries both ids and the cluster, checked at both ends",
        shown_by: &[
            ("tests/net.rs", "swapped_nodes_are_told_apart"),
            ("tests/net.rs", "a_node_is_never_its_own_peer"),
            ("tests/net.rs", "a_foreign_cluster_is_refused_in_both_directions_with_both_names"),
            ("tests/members.rs", "swapped_ports_replicate_nothing_and_say_so"),
            ("tests/net.rs", "whoever_is_refused_knocks_less_and_less_and_is_let_in_soon_after_it_is_welcome"),
        ],
    },
    Trap {
        trap: "changing a member's address in place splits the quorum",
        design: "a node says itself where it is, one at a time; who is not the node that was meant is nobody's voter",
        shown_by: &[
            ("tests/members.rs", "a_node_that_comes_back_with_another_name_or_address_is_known_by_it"),
            ("tests/members.rs", "swapped_ports_replicate_nothing_and_say_so"),
            ("tests/traps.rs", "what_is_dangerous_in_openraft_is_not_called"),
        ],
    },
    Trap {
        trap: "two changes of the cluster at once leave it in between",
        design: "one at a time, in its order",
        shown_by: &[
            ("tests/members.rs", "removals_at_once_are_done_one_after_another"),
            ("src/members/tests.rs", "a_change_whose_leader_stopped_between_the_two_steps_is_finished_by_the_next"),
            ("src/members/tests.rs", "a_removal_whose_leader_stopped_after_its_first_step_is_finished_by_the_next"),
        ],
    },
    Trap {
        trap: "a learner that is promoted too early stalls every commit",
        design: "promoted only when it has been near for a while",
        shown_by: &[(
            "tests/members.rs",
            "a_learner_that_is_far_behind_is_promoted_only_when_it_has_been_near_for_a_while",
        )],
    },
    Trap {
        trap: "a removed node goes on standing for election",
        design: "pre-vote; it is told so in the handshake",
        shown_by: &[(
            "tests/members.rs",
            "a_node_that_was_removed_while_it_was_cut_off_changes_no_term_when_it_is_back",
        )],
    },
    Trap {
        trap: "the log is purged past a slow follower, which is sent one snapshot after the other",
        design: "the log keeps as many entries behind a snapshot as one is made after",
        shown_by: &[
            ("tests/store.rs", "a_node_that_was_away_for_longer_than_the_log_reaches_back_gets_a_snapshot"),
            ("tests/raft.rs", "three_rafts_elect_replicate_hand_over_and_bring_a_fourth_up_by_snapshot"),
            ("tests/retention.rs", "a_slow_install_under_load_is_one_snapshot_and_the_rest_comes_from_the_log"),
        ],
    },
    Trap {
        trap: "a snapshot is installed by half",
        design: "a file is taken whole or not at all; a new directory counts once CURRENT names it",
        shown_by: &[
            ("src/net/snapshot.rs", "only_a_whole_and_right_file_is_taken"),
            ("tests/net.rs", "a_cancelled_snapshot_is_not_installed_and_the_next_one_takes_its_place"),
            ("src/snapshot.rs", "a_damaged_or_cut_snapshot_is_refused"),
            ("tests/scripts.rs", "what_a_snapshot_is_made_of_is_what_the_scripts_say"),
            ("tests/snapshots.rs", "a_receiver_that_is_killed_in_the_middle_takes_no_part_for_the_whole"),
            ("tests/snapshots.rs", "a_sender_that_is_killed_in_the_middle_is_followed_by_another"),
            ("tests/crash.rs", "a_node_that_is_killed_at_a_named_point_loses_nothing"),
        ],
    },
    Trap {
        trap: "a snapshot that is damaged, or too old for the log, is sent for ever",
        design: "who sends looks at a file that was not taken, and writes another; a start has one of what its log has purged",
        shown_by: &[
            ("tests/snapshot_damage.rs", "a_leader_whose_snapshot_is_damaged_writes_another_for_who_needs_it"),
            (
                "tests/snapshot_damage.rs",
                "where_the_log_begins_after_the_newest_readable_snapshot_a_start_writes_another",
            ),
            ("tests/snapshot_damage.rs", "where_a_checkpoint_is_ahead_of_the_log_a_start_writes_a_snapshot_of_it"),
        ],
    },
    Trap {
        trap: "the newest snapshot is damaged, and the log does not go on from the one before it",
        design: "the log reaches back to the older of two snapshots; a damaged one moves aside",
        shown_by: &[(
            "tests/snapshot_damage.rs",
            "a_start_without_checkpoint_and_newest_snapshot_goes_on_from_the_one_before",
        )],
    },
    Trap {
        trap: "a snapshot on its way holds up heartbeats and commits",
        design: "a lane of its own with a bandwidth, and threads of their own for files",
        shown_by: &[
            ("tests/snapshots.rs", "a_large_snapshot_stays_out_of_memory_and_out_of_the_way_of_elections_and_commits"),
            ("tests/transfer.rs", "a_snapshot_of_300_mib_stays_out_of_memory_and_out_of_the_way_of_heartbeats"),
        ],
    },
    Trap {
        trap: "a large snapshot is in memory as a whole",
        design: "it is a file that is read and written in parts, and sled is opened anew while it is filled",
        shown_by: &[
            ("tests/snapshot_memory.rs", "a_snapshot_of_half_a_gibibyte_is_built_and_installed_in_a_fraction_of_it"),
            ("tests/snapshots.rs", "a_large_snapshot_stays_out_of_memory_and_out_of_the_way_of_elections_and_commits"),
        ],
    },
    Trap {
        trap: "sled's batches wait for each other for ever",
        design: "one thread writes, keys are removed one by one, and a watch ends a process in which sled does not answer",
        shown_by: &[
            ("tests/checkpoint_churn.rs", "leaves_that_are_emptied_for_ever_hold_up_neither_writers_nor_readers"),
            ("src/base/watch.rs", "only_who_stays_inside_is_stuck"),
        ],
    },
    Trap {
        trap: "three checkpoints at once hold up all commits",
        design: "apply goes on in memory while a checkpoint is written; snapshots take turns",
        shown_by: &[
            ("tests/faults.rs", "three_checkpoints_at_once_hold_up_no_commit"),
            ("src/retention/rule.rs", "nodes_take_turns"),
        ],
    },
    Trap {
        trap: "sled panics on its own files, or hides their damage",
        design: "opened behind a catch of panics, proved by the hash of all pairs, moved aside and rebuilt",
        shown_by: &[
            ("tests/store.rs", "after_a_stop_of_all_the_state_is_there_and_nothing_is_played_again"),
            ("tests/model.rs", "random_histories_agree_with_a_naive_model_whatever_happens_to_the_disk"),
            ("tests/checkpoint_damage.rs", "any_damage_to_any_file_of_the_checkpoint_ends_in_the_state_of_before"),
        ],
    },
    Trap {
        trap: "the disk is full",
        design: "the first failed write is final: the node ends, and nothing after it was acknowledged; a snapshot can wait",
        shown_by: &[
            ("tests/log_writes.rs", "a_full_disk_stops_the_log_and_loses_nothing_acknowledged"),
            ("tests/faults.rs", "a_node_with_a_full_disk_ends_and_catches_up_when_there_is_room"),
            ("tests/faults.rs", "a_leader_whose_disk_fills_up_hands_over_says_why_and_is_back_when_there_is_room"),
            ("tests/faults.rs", "a_snapshot_that_finds_no_room_ends_nobody_and_leaves_nothing_behind"),
            ("tests/checkpoint_full.rs", "a_node_without_room_for_a_snapshot_goes_on_and_writes_it_when_there_is_some"),
            ("../tests/full_disk.rs", "a_full_disk_takes_a_node_out_of_service_and_room_brings_it_back"),
        ],
    },
    Trap {
        trap: "a failed fsync is tried again, and succeeds",
        design: "the first failure is final for all that wait and all that come",
        shown_by: &[
            ("tests/log_writes.rs", "the_first_failed_sync_is_final_for_all_that_wait_and_all_that_come"),
            ("tests/faults.rs", "a_failed_write_or_sync_ends_the_node_and_loses_nothing"),
        ],
    },
    Trap {
        trap: "a read by lease is stale after a pause or a jump of the clock",
        design: "reads go by read index; no lease is ever asked for",
        shown_by: &[
            ("tests/traps.rs", "what_is_dangerous_in_openraft_is_not_called"),
            ("tests/store.rs", "a_node_without_a_quorum_acknowledges_and_confirms_nothing"),
            ("tests/processes.rs", "a_leader_that_was_paused_answers_no_stale_read"),
        ],
    },
    Trap {
        trap: "a leader without a quorum still calls itself leader",
        design: "what counts is when a quorum last answered; proposals are refused at once after that",
        shown_by: &[
            ("tests/store.rs", "a_node_without_a_quorum_acknowledges_and_confirms_nothing"),
            ("tests/cut.rs", "a_leader_that_was_cut_off_starts_again_and_what_it_had_queued_does_nothing"),
        ],
    },
    Trap {
        trap: "the outcome is unknown after a time-out or a change of leader",
        design: "batches carry incarnation and sequence, messages a `mid`: sent again, they take effect once",
        shown_by: &[
            ("tests/store.rs", "each_of_2000_proposals_takes_effect_once_and_in_order_over_two_leader_changes"),
            ("tests/state.rs", "a_batch_takes_effect_once_and_in_its_turn"),
            ("tests/state.rs", "the_same_mid_gives_the_same_place_and_no_second_message"),
        ],
    },
    Trap {
        trap: "a refusal names no leader to go to",
        design: "the batch waits and is sent to whoever leads then",
        shown_by: &[
            ("tests/store.rs", "each_of_2000_proposals_takes_effect_once_and_in_order_over_two_leader_changes"),
            ("tests/members.rs", "removing_the_leader_hands_over_first"),
        ],
    },
    Trap {
        trap: "borrowed metrics hold Raft up",
        design: "they are copied where they are read",
        shown_by: &[("tests/traps.rs", "borrowed_metrics_are_given_back_in_the_same_statement")],
    },
    Trap {
        trap: "a node reads on after Raft has stopped for good",
        design: "`Store::fatal` comes true with the reason, and the process exits",
        shown_by: &[
            ("tests/levels.rs", "a_node_that_meets_a_command_it_does_not_know_stops_and_says_what_to_do"),
            ("tests/log_memory.rs", "a_stored_entry_that_is_not_what_was_written_is_fatal"),
        ],
    },
    Trap {
        trap: "replication is bounded in entries and not in bytes",
        design: "bounds in bytes on commands, batches, reads of the log and frames",
        shown_by: &[
            ("tests/net.rs", "entries_over_the_byte_bound_go_in_parts"),
            ("tests/net.rs", "four_gibibytes_declared_are_refused_before_and_after_the_handshake"),
            ("src/propose/tests.rs", "a_batch_is_bounded_by_commands_and_by_bytes"),
            ("tests/log_writes.rs", "one_read_is_bounded_in_bytes_but_never_empty"),
        ],
    },
    Trap {
        trap: "what belonged to a dead node stays for ever",
        design: "a node's end detaches its sessions by one write; they expire, and old rooms are swept",
        shown_by: &[
            ("tests/state.rs", "a_start_or_a_down_detaches_all_sessions_of_the_node_and_writes_none_of_them"),
            ("tests/state.rs", "expire_needs_the_generation_and_a_session_without_a_transport"),
            ("tests/store.rs", "the_leader_sweeps_rooms_that_everybody_left"),
        ],
    },
    Trap {
        trap: "bytes of another version decode without an error into something else",
        design: "envelopes with format, kind, length and checksum; enums grow at their end; golden files for ever",
        shown_by: &[
            ("src/golden/mod.rs", "a_forgotten_variant_is_noticed"),
            ("src/golden/stored.rs", "golden_commands"),
            ("src/golden/net.rs", "golden_calls"),
            ("tests/folder_golden.rs", "the_folder_of_the_first_version_opens_with_what_it_held"),
            ("tests/log_golden.rs", "the_log_of_format_1_opens"),
        ],
    },
    Trap {
        trap: "an older node skips a command that it does not know",
        design: "levels: not proposed before all know it; a node that meets one stops",
        shown_by: &[
            ("tests/levels.rs", "a_rolling_upgrade_ends_at_the_higher_level_and_an_old_node_stays_out_of_it"),
            ("tests/levels.rs", "a_learner_that_knows_less_holds_the_level_back"),
        ],
    },
    Trap {
        trap: "states drift apart, and nobody looks",
        design: "nodes compare their hashes; the one that the majority contradicts is not ready and does not lead",
        shown_by: &[("tests/divergence.rs", "a_node_with_another_state_is_named_by_all_and_does_not_lead")],
    },
];

fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_trap_is_shown_by_a_test_that_exists() {
    let mut seen = BTreeSet::new();
    for Trap { trap, design, shown_by } in TRAPS {
        assert!(seen.insert(trap), "twice: {trap}");
        assert!(!design.is_empty() && !shown_by.is_empty(), "{trap}");
        for (file, name) in *shown_by {
            let source = fs::read_to_string(crate_folder().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            assert!(is_test(&source, name), "\"{trap}\" is said to be shown by {name}, which is no test in {file}");
        }
    }
}

/// Whether there is a function of that name with a test's attribute above it.
fn is_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim_start).collect();
    let found = lines.iter().position(|line| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.strip_prefix("fn ").and_then(|line| line.strip_prefix(name)).is_some_and(|rest| rest.starts_with('('))
    });
    let above = |at: usize| lines[..at].iter().rev().take_while(|line| line.starts_with('#') || line.starts_with("//"));
    found.is_some_and(|at| above(at).any(|line| line.starts_with("#[test") || line.starts_with("#[tokio::test")))
}

#[test]
fn a_name_that_is_no_test_is_noticed() {
    let source = "#[test]\nfn one() {}\n\nfn two() {}\n\n#[tokio::test]\n#[ignore]\nasync fn three() {}\n";
    assert!(is_test(source, "one") && is_test(source, "three"));
    assert!(!is_test(source, "two") && !is_test(source, "on") && !is_test(source, "four"));
}

/// All sources of the crate, without comments.
fn sources() -> Vec<(PathBuf, String)> {
    fn below(folder: &Path, found: &mut Vec<PathBuf>) {
        for path in fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
            if path.is_dir() { below(&path, found) } else { found.push(path) }
        }
    }
    let mut files = Vec::new();
    below(&crate_folder().join("src"), &mut files);
    let code = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        lines.collect::<Vec<_>>().join("\n")
    };
    files.into_iter().map(|path| (path.clone(), code(&path))).collect()
}

#[test]
fn what_is_dangerous_in_openraft_is_not_called() {
    let users = |word| sources().into_iter().filter(move |(_, code)| code.contains(word)).map(|(path, _)| path);
    // A read that trusts a clock; a log that may have lost entries.
    for word in ["LeaseRead", "allow_next_revert", "allow_log_reversion: Some"] {
        let found: Vec<PathBuf> = users(word).collect();
        assert!(found.is_empty(), "{word} in {found:?}");
    }
    // An address changed in place: only of a node that has proved by its id and the secret that it is there.
    assert!(users("SetNodes").eq([crate_folder().join("src/members.rs")]));
}

#[test]
fn borrowed_metrics_are_given_back_in_the_same_statement() {
    let mut borrowed = 0;
    for (path, code) in sources() {
        for line in code.lines().filter(|line| line.contains("borrow_watched()")) {
            borrowed += 1;
            assert!(!line.trim_end().ends_with("borrow_watched();"), "{}: {line}", path.display());
        }
    }
    assert!(borrowed > 0, "openraft calls it otherwise now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_restarts_is_elected_again() {
    // Alone, because others would elect one of theirs meanwhile.
    let mut c = Cluster::new(1).await;
    let by = c.node(0).open_in_lobby("client").await;
    for n in 0..3 {
        let term = c.store(0).status().term;
        c.stop(0).await;
        c.reopen(0).await;
        c.all_started().await;
        assert!(c.store(0).status().term > term);
        c.node(0).call(say(&by, n.to_string())).await;
    }
}
