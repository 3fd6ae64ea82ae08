//! Search for the deliberate defects of the etcd backend. A defect is found only by the violation of an invariant that
//! is about it. The same seeds without a defect have to pass.

use enlist_etcd::DeliberateDefect;

use crate::{
    many::{Batch, Failed, Seeds, batch, found, jobs, shown_by},
    options::{Options, Outcome, Result},
    verdicts::Invariant,
};

/// Default number of runs after which a defect counts as missed.
const MAX_RUNS: u64 = 10_000;

/// Number of failed runs of the control that are listed.
const MAX_FAILURES: usize = 10;

/// Returns the invariants one of whose violations counts as finding the defect.
fn finding(defect: DeliberateDefect) -> &'static [Invariant] {
    use DeliberateDefect as D;
    use Invariant as I;
    match defect {
        D::WatchFromTooLate | D::NoListAfterCompaction => &[I::ViewsExist, I::NothingRepaired, I::ConfigViewsExist],
        D::ListKeepsTheGone => &[I::ViewsExist, I::NothingRepaired],
        D::ListWithoutRevision => &[I::ViewsExist, I::ViewsInOrder, I::ConfigViewsExist],
        D::MessagesProve | D::ProbesProveAtOnce => &[I::AgesHonest],
        D::DeletionsIgnored => &[I::ViewsExist, I::NothingRepaired, I::LossNoticed, I::InstanceReturns],
        D::BrokenWatchForgotten | D::SilenceTolerated => {
            &[I::WatchersConverge, I::ConfigConverges, I::LossNoticed, I::InstanceReturns]
        }
        D::TurnUnconfirmed => &[I::LossNoticed, I::Exclusion, I::QueueOrder],
        D::QueueIgnored | D::ReadersIgnoreWriters | D::ReaderHandsOver => &[I::Exclusion, I::QueueOrder],
        D::CallerGoneStays | D::LateEntryForgotten => &[I::QueueEmpties, I::ContendersServed],
        D::ValidTwiceAsLong => &[I::LossNoticed, I::Exclusion],
        D::HolderDeaf => &[I::LossNoticed],
        D::ReleaseUnconfirmed => &[I::ReleaseConfirmed, I::QueueEmpties],
        D::SuffixesShared => &[I::GrantedOnce, I::Exclusion, I::ContendersServed],
        D::RenewedTooLate => &[I::LeasesKept],
        D::LeasesLeaked => &[I::LeasesRevoked],
        D::RegistrationDeaf => &[I::InstanceReturns],
        D::UpdatesIgnored => &[I::StoreConverges],
        D::RemovalUnconfirmed | D::LateCreationForgotten => {
            &[I::NothingComesBack, I::StoreConverges, I::InstancesRemoved]
        }
        D::RefusalsIgnored => &[I::StoreConverges, I::InstanceReturns],
        D::CreationsReportedEarly => &[I::RegistrationStored],
        D::UpdatesReportedEarly => &[I::UpdateStored],
        D::UnknownWritesForgotten | D::SuspectAfterWrites => &[I::ErrorsJustified],
        D::OldValuesKept => &[I::ValuesExist],
        D::ValidTooBriefly => &[I::LocksKept],
        D::RemovalRetriedAtOnce => &[I::RequestRate],
        D::ProbesPanic => &[I::NoPanic],
    }
}

/// Prints the outcome of the runs with one defect. Returns `true` if it was found.
fn report(defect: DeliberateDefect, batch: &Batch) -> bool {
    let seconds = batch.took.as_secs_f64();
    let wanted = finding(defect);
    let Some((Failed { seed, .. }, invariant)) = found(&batch.failed, wanted) else {
        println!("{defect:?}: not found by {} runs in {seconds:.1} s; {wanted:?} was not violated", batch.runs);
        for Failed { seed, verdicts } in batch.failed.iter().take(3) {
            verdicts.iter().take(2).for_each(|verdict| println!("  seed {seed} failed otherwise: {verdict}"));
        }
        return false;
    };
    let otherwise = batch.failed.iter().filter(|other| found(std::slice::from_ref(other), wanted).is_none()).count();
    println!("{defect:?}: {invariant:?} by seed {seed} in {seconds:.1} s; {otherwise} runs failed otherwise");
    println!("  show it with `{}`", shown_by(*seed, Some(&format!("{defect:?}"))));
    true
}

/// Runs each defect until a run finds it, then the same seeds without a defect.
pub(crate) fn teeth(options: &Options) -> Result<Outcome> {
    let seeds = Seeds { first: options.seed.unwrap_or(1), count: options.seeds.unwrap_or(MAX_RUNS) };
    let wanted = options.defect.as_deref();
    let chosen = |defect: &&DeliberateDefect| wanted.is_none_or(|wanted| format!("{defect:?}") == wanted);
    let defects: Vec<_> = DeliberateDefect::ALL.iter().filter(chosen).copied().collect();
    if defects.is_empty() {
        return Err("there is no such defect".into());
    }
    let (mut missed, mut most) = (0, 0);
    for defect in &defects {
        let name = format!("{defect:?}");
        let batch = batch(seeds, jobs(options), Some(&name), |failed| found(failed, finding(*defect)).is_some());
        most = most.max(batch.runs);
        missed += usize::from(!report(*defect, &batch));
    }
    println!("{} of {} defects were found", defects.len() - missed, defects.len());
    let control = Seeds { count: most, ..seeds };
    let control = batch(control, jobs(options), None, |failed| failed.len() >= MAX_FAILURES);
    println!("control: {} runs of the same seeds without a defect, {} failed", control.runs, control.failed.len());
    for Failed { seed, verdicts } in &control.failed {
        for verdict in verdicts {
            println!("  seed {seed}: {verdict}");
        }
    }
    Ok(if missed == 0 && control.failed.is_empty() { Outcome::Passed } else { Outcome::Failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_defect_names_the_invariants_that_find_it() {
        for defect in DeliberateDefect::ALL {
            let named = finding(*defect);
            assert!(!named.is_empty(), "{defect:?}");
            assert!(!named.contains(&Invariant::Ends), "{defect:?}");
            let panics = named.contains(&Invariant::NoPanic);
            assert_eq!(panics, *defect == DeliberateDefect::ProbesPanic, "{defect:?}");
        }
    }
}
