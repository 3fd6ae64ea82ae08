//! The one list of all conformance cases, and its expansion into tests.

/// Calls a macro with the list of all cases: `module::name [what a layout has to carry]`.
#[doc(hidden)]
#[macro_export]
macro_rules! each_case {
    ([$($callback:tt)*] $arguments:tt) => {
        $($callback)*! { $arguments
            register::a_registered_instance_is_found []
            register::everything_an_instance_says_is_carried [Id Endpoints Weight Details]
            register::two_instances_of_one_service_are_both_found []
            register::a_departure_is_told_from_a_death [Id Details]
            register::a_deregistered_instance_is_gone_at_once []
            register::a_dropped_registration_is_withdrawn []
            register::dropping_the_register_future_withdraws_it []
            register::an_abandoned_instance_lives_until_its_lease_runs_out []
            register::a_crashed_process_loses_its_instances []
            register::a_renewed_lease_outlives_its_ttl []
            register::an_update_is_stored_in_place [Weight]
            register::an_update_keeps_the_lease [Weight]
            register::an_update_is_made_even_if_nobody_waits_for_it [Weight]
            register::the_last_of_many_updates_wins [Weight]
            register::an_update_that_is_too_large_changes_nothing [Details]
            register::an_instance_that_is_too_large_once_written_is_refused [Details]
            register::a_health_check_drives_the_health [Details]
            register::a_live_id_is_refused_to_another_process [Id Owner]
            register::a_live_id_is_refused_within_the_process [Id]
            register::after_a_take_over_a_refusal_names_the_revision_of_the_other [Id Weight]
            register::a_leftover_is_taken_over [Id]
            register::an_observation_outlives_the_call_that_began_it [Id]
            register::an_equal_owner_takes_over_at_once [Id Owner]
            register::deregistering_at_once_removes_what_a_dead_predecessor_left [Id Owner]
            register::dropping_at_once_leaves_what_a_predecessor_has [Id Owner]
            register::waiting_for_an_id_ends_when_it_is_free [Id]
            register::taking_over_replaces_a_live_instance [Id Weight]
            register::registrations_with_one_owner_do_not_fight [Id Owner Weight]
            register::registrations_that_take_over_do_not_fight [Id Weight]
            register::of_two_with_one_owner_the_newer_stands_after_a_wipe [Id Owner Term Weight]
            register::registrations_of_one_process_do_not_fight [Id Owner Weight]
            register::a_registration_that_keeps_failing_gives_way_within_its_process [Id Weight]
            register::a_successor_that_is_withdrawn_at_once_gives_the_id_back [Id Owner Weight]
            register::two_processes_with_one_given_lease_do_not_overwrite_each_other [Id Weight]
            register::deregistering_leaves_a_successor_alone [Id Owner Weight]
            register::a_new_registration_right_after_a_drop_stays [Id Weight]
            register::a_background_start_returns_before_the_store_answers []
            register::failing_fast_returns_the_first_error []
            register::waiting_for_the_start_ends_at_its_deadline []
            register::registering_again_after_a_timeout_succeeds [Id]
            register::attempts_are_limited_if_asked []
            register::registering_again_after_giving_up_succeeds [Id]
            register::registrations_of_one_process_share_a_lease [Id]
            register::an_instance_on_its_own_lease_dies_alone [Id]
            register::a_given_lease_is_used_and_not_revoked [Id]
            register::a_close_removes_what_is_on_a_given_lease [Id Details]
            register::a_registration_outlives_the_backend_object []
            register::deregistering_without_an_answer_goes_on_until_confirmed []
            register::impossible_input_is_refused_before_anything_is_sent []
            register::a_closed_client_refuses_everything []
            register::odd_names_are_carried_unchanged [Id Namespace Details]
            register::services_whose_names_begin_alike_do_not_see_each_other []
            register::namespaces_do_not_see_each_other [Namespace]
            reregister::an_instance_comes_back_after_its_lease_is_revoked [Id]
            reregister::an_instance_comes_back_after_its_key_is_deleted [Id]
            reregister::an_instance_comes_back_after_a_wipe []
            reregister::a_short_outage_leaves_the_instance_as_it_is [Id Weight]
            reregister::an_instance_comes_back_after_an_outage_longer_than_its_ttl []
            reregister::an_update_survives_reregistration [Id Weight]
            reregister::an_update_made_during_an_outage_is_stored_after_it [Weight]
            reregister::an_update_made_during_a_long_outage_is_stored_soon_after_it [Weight]
            reregister::a_registration_begun_during_a_long_outage_is_made_soon_after_it []
            reregister::an_eviction_is_respected_if_asked [Id]
            reregister::a_lost_lease_is_no_eviction [Id]
            reregister::a_brief_successor_is_no_eviction [Id Owner Weight Details]
            reregister::states_tell_what_happened [Id]
            publish::a_published_instance_outlives_its_publisher [Id]
            publish::publishing_again_replaces_it [Id Weight]
            publish::a_removed_instance_is_returned [Id]
            publish::removing_what_is_not_there_says_so [Id]
            publish::a_registered_instance_is_neither_replaced_nor_removed [Id Owner]
            publish::a_fixed_instance_is_not_taken_over_by_a_registration [Id]
            publish::an_evicted_instance_is_gone_if_its_registration_respects_that [Id]
            publish::an_evicted_instance_comes_back_if_its_registration_restores_it [Id]
            publish::evicting_what_changed_since_is_refused [Id Weight]
            publish::evicting_what_is_not_there_says_so [Id]
            publish::a_fixed_instance_can_be_evicted [Id]
            watch::the_first_change_is_the_whole_snapshot []
            watch::an_empty_service_is_known_to_be_empty []
            watch::changes_come_with_exactly_their_events [Weight]
            watch::resolving_and_watching_agree []
            watch::a_slow_watcher_gets_the_net_difference [Id Weight]
            watch::two_watchers_do_not_disturb_each_other []
            watch::a_dropped_next_loses_nothing []
            watch::a_restart_under_one_id_shows [Id]
            watch::an_outage_changes_the_freshness_and_not_the_set []
            watch::a_healthy_watch_is_ten_seconds_old_at_most []
            watch::age_grows_during_an_outage []
            watch::what_happened_during_an_outage_is_told_exactly [Id Weight]
            watch::compaction_during_an_outage_loses_nothing [Id Weight]
            watch::a_store_that_went_back_is_noticed [Id]
            watch::a_watch_begun_during_an_outage_heals []
            watch::revisions_only_grow []
            watch::resolving_fails_during_an_outage []
            watch::a_view_follows_and_survives_an_outage []
            watch::services_are_listed [Namespace Services]
            watch::a_watch_of_a_closed_client_ends []
            lock::impossible_options_of_a_lock_are_refused_before_anything_is_sent [Locks]
            lock::locks_and_elections_are_renewed_at_the_interval_asked_for [Locks LockQueue]
            lock::a_closed_client_grants_nothing [Locks]
            lock::a_free_lock_is_acquired [Locks]
            lock::a_held_lock_is_not_acquired_by_trying [Locks]
            lock::a_released_lock_goes_to_the_next [Locks]
            lock::a_dropped_guard_releases [Locks]
            lock::a_crashed_holder_is_succeeded [Locks]
            lock::tokens_grow_with_each_holder [Locks]
            lock::waiters_are_served_in_order [Locks LockQueue]
            lock::a_cancelled_waiter_leaves_the_line [Locks]
            lock::a_deadline_ends_the_wait_and_leaves_the_line [Locks]
            lock::a_failed_try_leaves_the_line [Locks]
            lock::a_revoked_lease_is_a_loss_within_a_second [Locks]
            lock::a_deleted_key_is_a_loss_within_a_second [Locks]
            lock::a_cut_off_holder_stops_before_its_successor_starts [Locks]
            lock::a_wiped_store_is_a_loss [Locks]
            lock::releasing_without_an_answer_returns_and_goes_on [Locks]
            lock::a_deadline_during_an_outage_leaves_nothing_behind [Locks]
            lock::a_try_during_an_outage_says_that_the_store_is_unavailable [Locks]
            lock::loss_is_for_ever [Locks]
            lock::a_lost_lock_is_free_for_others_although_its_guard_lives [Locks]
            lock::releasing_a_lost_lock_says_so_and_leaves_its_successor_alone [Locks]
            lock::a_lock_is_kept_beyond_its_ttl [Locks]
            lock::readers_share_and_a_writer_excludes [Locks LockDetails]
            lock::a_waiting_writer_is_not_overtaken [Locks LockDetails]
            lock::locks_whose_names_begin_alike_do_not_see_each_other [Locks LockDetails]
            lock::two_acquisitions_of_one_process_exclude_each_other [Locks]
            lock::work_is_aborted_at_the_loss [Locks]
            lock::a_lock_on_a_lease_of_its_own_dies_alone [Locks]
            lock::a_waiter_whose_lease_dies_learns_it [Locks LockQueue]
            lock::a_waiter_whose_lease_is_revoked_enters_the_queue_again [Locks LockQueue]
            lock::a_waiter_enters_the_queue_again_after_a_wipe [Locks]
            lock::a_waiter_that_entered_the_queue_again_keeps_its_deadline [Locks LockQueue]
            lock::locks_and_registrations_never_share_a_lease [Locks Id]
            lock_delay::a_lock_delay_passes_after_a_crash_and_not_after_a_release [Locks LockDetails]
            lock_delay::a_lock_delay_passes_for_whoever_comes_after_the_crash [Locks LockDetails]
            lock_delay::a_lock_delay_passes_after_the_key_of_the_holder_was_deleted [Locks LockDetails]
            lock_delay::a_lock_delay_counts_as_held_and_goes_on_if_nobody_waits_for_it [Locks LockDetails]
            lock_delay::a_lock_delay_passes_between_readers_and_writers_only [Locks LockDetails]
            election::a_lone_candidate_leads_and_is_known [Locks LockQueue]
            election::resigning_hands_over [Locks LockQueue]
            election::a_crashed_leader_is_succeeded [Locks LockQueue]
            election::a_proclamation_is_seen [Locks LockQueue]
            election::a_lost_leader_proclaims_nothing [Locks LockQueue]
            election::an_observer_sees_leaders_come_and_go [Locks LockQueue]
            election::an_outage_leaves_the_observed_leader [Locks LockQueue]
            election::a_dropped_campaign_leaves_the_line [Locks LockQueue]
            election::elections_and_locks_of_one_name_are_apart [Locks LockQueue LockDetails]
            election::an_election_has_no_shared_mode [Locks LockQueue]
            election::a_healthy_observer_is_ten_seconds_behind_at_most [Locks LockQueue]
        }
    };
}

/// Makes one named test of each conformance case: `conformance!(#[tokio::test] harness)`, where `harness` is an expression
/// that makes a fresh [`Harness`](crate::Harness). It may use `.await`.
///
/// A backend that only registers and finds instances leaves out all cases of locks and elections, and makes its clients with
/// [`Client::without_locks`](crate::Client::without_locks): `conformance!(#[tokio::test] harness, without locks)`.
#[macro_export]
macro_rules! conformance {
    (#[$test:meta] $harness:expr) => {
        $crate::each_case!([$crate::__conformance_tests](with_locks #[$test] $harness));
    };
    (#[$test:meta] $harness:expr, without locks) => {
        $crate::each_case!([$crate::__conformance_tests](without_locks #[$test] $harness));
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    (($which:ident #[$test:meta] $harness:expr) $($module:ident :: $case:ident [$($need:ident)*])*) => {
        $($crate::__conformance_test! { $which [$($need)*] #[$test] $case $harness })*
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_test {
    (without_locks [Locks $($need:ident)*] $($case:tt)*) => {};
    ($which:ident [$($need:ident)*] #[$test:meta] $case:ident $harness:expr) => {
        #[$test]
        async fn $case() {
            $crate::cases::$case(&$harness).await;
        }
    };
}
