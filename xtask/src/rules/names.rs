//! Names of the first version, which standard terms have replaced, and methods for backends outside `enlist::backend`.

use std::path::Path;

use super::{known::Finding, sources::Source, tokens::tokens};

/// Identifiers that no longer exist. Words with a second meaning that the code still needs are not among them:
/// `Column`, `Group`, `Held`, `KeepAlive`, `Presence`, `answer`, `bulk`, `fast`, `left`, `line`, `place`, `run` and
/// `spread`.
pub(super) const OLD: [&str; 74] = [
    "Batcher",
    "Beside",
    "Blind",
    "COMPANY",
    "Carried",
    "Choice",
    "Core",
    "Disturbance",
    "Draft",
    "End",
    "Fate",
    "Feed",
    "Flight",
    "Ground",
    "Guide",
    "Heir",
    "Heirs",
    "Hub",
    "InLine",
    "Keeper",
    "LINE",
    "LOOK",
    "Lane",
    "LatePlaceForgotten",
    "Latest",
    "Lie",
    "Looked",
    "Mirror",
    "NoPick",
    "Nobody",
    "Numbers",
    "NumbersShared",
    "Occupant",
    "Overtaken",
    "OwnKeys",
    "OwnPlace",
    "PATIENCE",
    "Pause",
    "Picture",
    "Pipeline",
    "Place",
    "Placed",
    "Reading",
    "Registrar",
    "Rests",
    "SLOW",
    "Said",
    "Seat",
    "Shares",
    "Slots",
    "Stander",
    "Standing",
    "Tenure",
    "Terms",
    "Twins",
    "Ward",
    "Whose",
    "Worker",
    "beside",
    "bury",
    "draft",
    "feed",
    "fell",
    "graves",
    "ground",
    "herd_window",
    "lied",
    "patient",
    "placed",
    "robbed",
    "said",
    "told",
    "waiter",
    "waiters",
];

/// Names of files, without extension, that no longer exist.
const OLD_FILES: [&str; 23] = [
    "batcher",
    "beside",
    "feed",
    "graves",
    "guide",
    "heirs",
    "in_line",
    "keeper",
    "lane",
    "latest",
    "mirror",
    "own_keys",
    "own_place",
    "picture",
    "pipeline",
    "registrar",
    "seat",
    "shares",
    "slots",
    "stander",
    "standing",
    "tenure",
    "ward",
];

/// Folder of the only code that is for backends.
const FOR_BACKENDS: &str = "core/src/backend";

/// Returns the files with old names in their code, their quotations in comments, or their path, and those of core with
/// remarks that something is for backends.
pub(super) fn findings(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| !source.path.ends_with("xtask/src/rules/names.rs")) {
        let place = source.path.display().to_string();
        let old: Vec<_> = identifiers(&source.text).into_iter().filter(|word| OLD.contains(word)).collect();
        if let Some(first) = old.first() {
            findings.push(Finding::new("old-name", place.clone(), old.len(), format!("old names, such as {first}")));
        }
        let parts = source.path.iter().filter_map(|part| Path::new(part).file_stem()).filter_map(|part| part.to_str());
        if let Some(part) = parts.into_iter().find(|part| OLD_FILES.contains(part)) {
            findings.push(Finding::new("old-file-name", place.clone(), 1, format!("has the old name {part}")));
        }
        let remarks = source.text.matches("For backends").count();
        if remarks > 0 && source.path.starts_with("core/src") && !source.path.starts_with(FOR_BACKENDS) {
            findings.push(Finding::new("for-backends", place, remarks, format!("remarks outside {FOR_BACKENDS}")));
        }
    }
    findings
}

/// Words of the code, and those that comments quote as code.
fn identifiers(text: &str) -> Vec<&str> {
    let comments = text.lines().filter_map(|line| line.split_once("//").map(|(_, comment)| comment));
    let quoted = comments.flat_map(|comment| comment.split('`').skip(1).step_by(2));
    let words = quoted.flat_map(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_'));
    tokens(text).into_iter().chain(words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let source = Source { path: path.into(), text: text.to_owned() };
        findings(&[source]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn old_identifiers_are_found_and_words_of_texts_are_not() {
        let text = "// Standing here, see `Keeper`.\nstruct Standing(&'static str);\nconst A: &str = \"Mirror\";";
        assert_eq!(found("a.rs", text), ["old-name a.rs 2 old names, such as Standing"]);
        assert!(found("a.rs", "// Standing\nuse Presence::Held; fn left(place: Line) {}").is_empty());
    }

    #[test]
    fn old_file_names_are_found_as_parts_of_paths() {
        assert_eq!(found("x/src/feed.rs", ""), ["old-file-name x/src/feed.rs 1 has the old name feed"]);
        assert_eq!(found("x/registrar/a.rs", ""), ["old-file-name x/registrar/a.rs 1 has the old name registrar"]);
        assert!(found("x/src/feedback.rs", "").is_empty());
    }

    #[test]
    fn remarks_about_backends_belong_to_their_module() {
        let text = "/// For backends: closes it.";
        assert_eq!(found("core/src/a.rs", text), ["for-backends core/src/a.rs 1 remarks outside core/src/backend"]);
        assert!(found("core/src/backend/a.rs", text).is_empty());
    }

    #[test]
    fn lists_of_names_are_sorted_and_each_is_there_once() {
        for list in [&OLD[..], &OLD_FILES[..]] {
            assert!(list.is_sorted_by(|one, other| one < other), "{list:?}");
        }
    }
}
