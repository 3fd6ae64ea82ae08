//! Defects of etcd that concern enlist, by version, as of November 2026. `docs/faults.md` describes the effect of each,
//! and the defence.
//!
//! Sources: the changelogs of etcd (`CHANGELOG/CHANGELOG-3.4.md` to `-3.7.md`), and for the first releases the table in
//! its `tests/robustness/README.md`. A defect that was mended before 3.6.0 is in no changelog of 3.6; the commits are
//! in its tag.

/// First minor version of [`DEFECTS`].
const OLDEST: u32 = 4;

/// Releases in which the status, and with it the version, is for root only where authentication is on: the first and
/// the last one of each line.
///
/// CVE-2026-33413 (3.4.42, 3.5.28) and pull request #14663 (3.6.0, after 3.6.0-alpha.0) began it. #21815 (3.5.32),
/// #21811 (3.6.12) and #21666 (3.7.0) ended it. 3.4 had ended before, with 3.4.45.
pub(crate) const STATUS_FOR_ROOT: [[&str; 2]; 3] = [["3.4.42", "3.4.45"], ["3.5.28", "3.5.31"], ["3.6.0", "3.6.11"]];

/// Releases without a known defect, of the lines that get fixes. The status is for every user there.
pub(super) const ALL_FIXED: &[&str] = &["3.5.33", "3.6.14", "3.7.1"];

/// A defect and the releases that have it.
struct KnownDefect {
    does: &'static str,
    /// First patch releases of 3.4, 3.5, 3.6 and 3.7 that have it.
    since: [u32; 4],
    /// First patch releases of 3.4, 3.5, 3.6 and 3.7 without it; `None` is never.
    fixed: [Option<u32>; 4],
}

const DEFECTS: [KnownDefect; 11] = [
    // Issue #13766: changelog of 3.5.3. "v3.5" introduced it, and 3.6.0 never had it.
    KnownDefect {
        does: "loses or repeats changes when it is killed",
        since: [0; 4],
        fixed: [Some(0), Some(3), Some(0), Some(0)],
    },
    // Pull requests #15275 (3.4.24) and #15274 (3.5.8), "might send duplicated events to watch clients".
    KnownDefect { does: "sends events twice", since: [0; 4], fixed: [Some(24), Some(8), Some(0), Some(0)] },
    // Issue #15271: pull requests #15520 (3.4.25) and #15515 (3.5.8).
    KnownDefect {
        does: "sends old events again after a member received a snapshot",
        since: [0; 4],
        fixed: [Some(25), Some(8), Some(0), Some(0)],
    },
    // Issue #15220: pull requests #15697 (3.4.25) and #15695 (3.5.8).
    KnownDefect { does: "reports progress before events", since: [0; 4], fixed: [Some(25), Some(8), Some(0), Some(0)] },
    // Issues #12528 and #15247: pull requests #17465 (3.4.31) and #17425 (3.5.13).
    KnownDefect {
        does: "lets a former leader revoke leases",
        since: [0; 4],
        fixed: [Some(31), Some(13), Some(0), Some(0)],
    },
    // Issue #17529: pull requests #17610 (3.4.31) and #17612 (3.5.13).
    KnownDefect {
        does: "loses events of slow watches at a compaction",
        since: [0; 4],
        fixed: [Some(31), Some(13), Some(0), Some(0)],
    },
    // Issues #18089 and #19179: pull requests #18475 (3.4.34) and #18474 (3.5.16) for the first one, #19251 (3.4.36)
    // and #19249 (3.5.18) for the second one.
    KnownDefect {
        does: "forgets a deletion at a compaction",
        since: [0; 4],
        fixed: [Some(36), Some(18), Some(0), Some(0)],
    },
    // Issue #20221: pull requests #20291 (3.4.38), #20290 (3.5.22) and #20286 (3.6.2).
    KnownDefect {
        does: "sends old events to a watch from a future revision",
        since: [0; 4],
        fixed: [Some(38), Some(22), Some(2), Some(0)],
    },
    // Pull request #20590: #20813 (3.4.38), #20616 (3.5.23) and #20615 (3.6.5).
    KnownDefect {
        does: "acknowledges renewals of revoked leases",
        since: [0; 4],
        fixed: [Some(38), Some(23), Some(5), Some(0)],
    },
    // Issue #20418, "introduced in v3.5.0 and v3.4.20": pull requests #21423 (3.4.42), #21421 (3.5.28) and #21417
    // (3.6.9).
    KnownDefect {
        does: "answers stale reads after a pause",
        since: [20, 0, 0, 0],
        fixed: [Some(42), Some(28), Some(9), Some(0)],
    },
    // Advisory GHSA-xg4h-6gfc-h4m8: changelogs of 3.5.33, 3.6.14 and 3.7.1. 3.4 had ended before.
    KnownDefect {
        does: "sends watches events that their user may not read",
        since: [0; 4],
        fixed: [None, Some(33), Some(14), Some(1)],
    },
];

impl KnownDefect {
    /// Returns `true` if patch release `patch` of the minor version `3.(4 + line)` has the defect.
    fn is_in(&self, line: usize, patch: u32) -> bool {
        let (Some(since), Some(fixed)) = (self.since.get(line), self.fixed.get(line)) else { return false };
        patch >= *since && fixed.is_none_or(|fixed| patch < fixed)
    }
}

/// Returns [`STATUS_FOR_ROOT`] as text.
pub(super) fn status_for_root() -> String {
    let [of_3_4, of_3_5, of_3_6] = STATUS_FOR_ROOT.map(|[first, last]| format!("{first} to {last}"));
    format!("{of_3_4}, {of_3_5} and {of_3_6}")
}

/// Returns the known defects of a version of etcd, and the releases with all fixes; `None` if none is known.
pub(super) fn defects(version: &str) -> Option<(String, &'static [&'static str])> {
    let mut numbers = version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let [major, minor, patch] = [numbers.next()?, numbers.next()?, numbers.next().unwrap_or(0)];
    if major != 3 {
        return None;
    }
    let prefix = format!("3.{minor}.");
    let of_line = ALL_FIXED.iter().position(|release| release.starts_with(&prefix));
    let fixed_in = of_line.map_or(ALL_FIXED, |at| &ALL_FIXED[at..=at]);
    let Some(line) = minor.checked_sub(OLDEST) else {
        return Some(("is older than what enlist is tested with".to_owned(), fixed_in));
    };
    let known: Vec<_> =
        DEFECTS.iter().filter(|defect| defect.is_in(line as usize, patch)).map(|defect| defect.does).collect();
    // The end of 3.4 was 2026-06-01.
    let ended = if minor == OLDEST { "gets no more fixes, and " } else { "" };
    (!known.is_empty()).then(|| (format!("{ended}{}", known.join(", ")), fixed_in))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a row of the table: the last release of each line that has the defect, and the first one without it.
    #[track_caller]
    fn row(does: &str, borders: &[(&str, &str)]) {
        let has = |version| defects(version).is_some_and(|(text, _)| text.contains(does));
        assert!(DEFECTS.iter().any(|defect| defect.does == does), "{does}");
        for (last, fixed) in borders {
            assert!(has(last), "{last} {does}");
            assert!(!has(fixed), "{fixed} {does}");
        }
        assert!(!has("3.8.0") && !has("3.6.14") && !has("3.7.1"), "the newest release of each line");
    }

    #[test]
    fn the_fix_is_in_the_own_line_where_it_has_one() {
        for (version, fixed) in
            [("3.4.45", ALL_FIXED), ("3.5.1", &["3.5.33"]), ("3.6.0", &["3.6.14"]), ("3.7.0", &["3.7.1"])]
        {
            assert_eq!(defects(version).expect("it has defects").1, fixed, "{version}");
        }
        assert!(ALL_FIXED.iter().all(|version| defects(version).is_none()));
    }

    #[test]
    fn changes_are_lost_or_repeated_until_3_5_3() {
        let does = "loses or repeats changes when it is killed";
        row(does, &[("3.5.0", "3.4.45"), ("3.5.2", "3.5.3"), ("3.5.2", "3.6.0")]);
    }

    #[test]
    fn events_are_sent_twice_until_3_4_24_and_3_5_8() {
        row("sends events twice", &[("3.4.23", "3.4.24"), ("3.5.7", "3.5.8"), ("3.5.7", "3.6.0")]);
    }

    #[test]
    fn old_events_are_sent_again_until_3_4_25_and_3_5_8() {
        let does = "sends old events again after a member received a snapshot";
        row(does, &[("3.4.24", "3.4.25"), ("3.5.7", "3.5.8"), ("3.5.7", "3.6.0")]);
    }

    #[test]
    fn progress_is_early_until_3_4_25_and_3_5_8() {
        row("reports progress before events", &[("3.4.24", "3.4.25"), ("3.5.7", "3.5.8"), ("3.5.7", "3.6.0")]);
    }

    #[test]
    fn former_leaders_revoke_until_3_4_31_and_3_5_13() {
        row("lets a former leader revoke leases", &[("3.4.30", "3.4.31"), ("3.5.12", "3.5.13"), ("3.5.12", "3.6.0")]);
    }

    #[test]
    fn slow_watches_lose_events_until_3_4_31_and_3_5_13() {
        let does = "loses events of slow watches at a compaction";
        row(does, &[("3.4.30", "3.4.31"), ("3.5.12", "3.5.13"), ("3.5.12", "3.6.0")]);
    }

    #[test]
    fn deletions_are_forgotten_until_3_4_36_and_3_5_18() {
        row("forgets a deletion at a compaction", &[("3.4.35", "3.4.36"), ("3.5.17", "3.5.18"), ("3.5.17", "3.6.0")]);
    }

    #[test]
    fn future_watches_are_wrong_until_3_4_38_3_5_22_and_3_6_2() {
        let does = "sends old events to a watch from a future revision";
        row(does, &[("3.4.37", "3.4.38"), ("3.5.21", "3.5.22"), ("3.6.1", "3.6.2"), ("3.6.1", "3.7.0")]);
    }

    #[test]
    fn revoked_leases_are_renewed_until_3_4_38_3_5_23_and_3_6_5() {
        let does = "acknowledges renewals of revoked leases";
        row(does, &[("3.4.37", "3.4.38"), ("3.5.22", "3.5.23"), ("3.6.4", "3.6.5"), ("3.6.4", "3.7.0")]);
    }

    #[test]
    fn reads_are_stale_from_3_4_20_until_3_4_42_3_5_28_and_3_6_9() {
        let does = "answers stale reads after a pause";
        row(does, &[("3.4.41", "3.4.42"), ("3.5.27", "3.5.28"), ("3.6.8", "3.6.9"), ("3.6.8", "3.7.0")]);
        row(does, &[("3.4.20", "3.4.19")]);
    }

    #[test]
    fn watches_leak_until_3_5_33_3_6_14_and_3_7_1() {
        let does = "sends watches events that their user may not read";
        row(does, &[("3.5.32", "3.5.33"), ("3.6.13", "3.6.14"), ("3.7.0", "3.7.1")]);
        row(does, &[("3.4.45", "3.8.0")]);
    }

    #[test]
    fn a_version_with_several_defects_names_them_all() {
        for (version, known) in
            [("3.4.23", 10), ("3.4.45", 1), ("3.5.1", 11), ("3.5.30", 1), ("3.6.0-rc.1", 4), ("3.7.0", 1)]
        {
            let (text, _) = defects(version).unwrap();
            // For 3.4, one of the commas states that it has ended.
            let ended = usize::from(version.starts_with("3.4."));
            assert_eq!(text.matches(", ").count() + 1, known + ended, "{version}: {text}");
        }
        assert!(["3.5.33", "3.6.14", "3.7.1", "3.8.0", "4.0.0"].into_iter().all(|version| defects(version).is_none()));
    }

    #[test]
    fn old_lines_are_reported_as_such() {
        assert!(defects("3.4.45").unwrap().0.starts_with("gets no more fixes"));
        assert!(defects("3.3.27").unwrap().0.contains("older"));
        assert_eq!(defects("3.5.30").unwrap().1, ["3.5.33"]);
    }
}
