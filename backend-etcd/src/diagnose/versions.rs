//! Defects of etcd that concern enlist, by version. The numbers are those of etcd's changelogs and issues, as of
//! November 2026.

/// A defect, with the patch releases of 3.4, 3.5, 3.6 and 3.7 that were the first without it; `None` is never.
struct Defect {
    does: &'static str,
    fixed: [Option<u32>; 4],
}

const DEFECTS: [Defect; 8] = [
    // #13766
    Defect { does: "loses or repeats changes when it is killed", fixed: [Some(0), Some(3), Some(0), Some(0)] },
    // #15220
    Defect { does: "tells progress before events", fixed: [Some(25), Some(8), Some(0), Some(0)] },
    // #15247, #12528
    Defect { does: "lets a former leader revoke leases", fixed: [Some(31), Some(13), Some(0), Some(0)] },
    // #18089, #19179
    Defect { does: "forgets a deletion at a compaction", fixed: [Some(36), Some(18), Some(0), Some(0)] },
    // #20221
    Defect {
        does: "tells old events to a watch from a future revision",
        fixed: [Some(38), Some(22), Some(2), Some(0)],
    },
    Defect { does: "acknowledges renewals of revoked leases", fixed: [Some(38), Some(23), Some(5), Some(0)] },
    // #20418
    Defect { does: "answers stale reads after a pause", fixed: [Some(42), Some(28), Some(9), Some(0)] },
    // GHSA-xg4h-6gfc-h4m8
    Defect { does: "tells watches what their user may not read", fixed: [None, Some(33), Some(14), Some(1)] },
];

/// The first line of versions that [`DEFECTS`] has.
const OLDEST: u32 = 4;

/// Returns the known defects of a version of etcd, and the releases with all fixes; `None` if none is known.
pub(super) fn defects(version: &str) -> Option<(String, &'static [&'static str])> {
    let mut numbers = version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let [major, minor, patch] = [numbers.next()?, numbers.next()?, numbers.next().unwrap_or(0)];
    if major != 3 {
        return None;
    }
    let fixed_in: &[&str] = match minor {
        5 => &["3.5.33"],
        6 => &["3.6.14"],
        7 => &["3.7.1"],
        _ => &["3.5.33", "3.6.14", "3.7.1"],
    };
    let Some(line) = minor.checked_sub(OLDEST) else {
        return Some(("is older than what enlist is tested with".to_owned(), fixed_in));
    };
    let has =
        |defect: &&Defect| defect.fixed.get(line as usize).is_some_and(|fixed| fixed.is_none_or(|fixed| patch < fixed));
    let known: Vec<_> = DEFECTS.iter().filter(has).map(|defect| defect.does).collect();
    // The end of 3.4 was 2026-06-01.
    let ended = if minor == OLDEST { "gets no more fixes, and " } else { "" };
    (!known.is_empty()).then(|| (format!("{ended}{}", known.join(", ")), fixed_in))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_the_defects_that_it_does_not_fix() {
        for (version, known) in [
            ("3.4.23", 7),
            ("3.4.24", 7),
            ("3.4.25", 6),
            ("3.4.42", 1),
            ("3.4.45", 1),
            ("3.5.1", 8),
            ("3.5.2", 8),
            ("3.5.3", 7),
            ("3.5.8", 6),
            ("3.5.13", 5),
            ("3.5.18", 4),
            ("3.5.22", 3),
            ("3.5.23", 2),
            ("3.5.28", 1),
            ("3.5.30", 1),
            ("3.5.33", 0),
            ("3.6.0-rc.1", 4),
            ("3.6.0", 4),
            ("3.6.2", 3),
            ("3.6.5", 2),
            ("3.6.9", 1),
            ("3.6.13", 1),
            ("3.6.14", 0),
            ("3.7.0", 1),
            ("3.7.1", 0),
            ("3.8.0", 0),
            ("4.0.0", 0),
        ] {
            let found = defects(version).map_or(0, |(text, _)| text.matches(", ").count() + 1);
            // For 3.4, one of the commas says that it has ended.
            let ended = usize::from(version.starts_with("3.4."));
            assert_eq!(found, known + ended, "{version}: {:?}", defects(version));
        }
        assert!(defects("3.4.45").unwrap().0.starts_with("gets no more fixes"));
        assert!(defects("3.3.27").unwrap().0.contains("older"));
        assert_eq!(defects("3.5.30").unwrap().1, ["3.5.33"]);
    }
}
