"""What holds for every registry behind the seam holds for that of a fake mesh: the very same tests."""

from tests.contract.registry.test_registry import (  # noqa: F401  # collected here
    test_a_deadline_that_has_passed_is_an_unavailable_registry,
    test_a_deregistered_instance_is_gone_and_a_second_time_unknown,
    test_a_refusal_carries_the_registrys_words,
    test_a_registered_instance_is_found_and_healthy_from_the_first_moment,
    test_a_report_changes_the_status_and_its_words,
    test_a_report_for_a_stranger_says_so,
    test_an_empty_address_means_the_nodes,
    test_an_unknown_service_has_no_instances,
    test_instances_come_sorted_by_id_whatever_their_health,
    test_maintenance_is_unhealthy_and_says_why,
    test_names_are_sorted_and_leave_out_the_registry_itself,
    test_odd_ids_survive_the_journey,
    test_registering_again_replaces_address_and_metadata,
    test_the_leader_has_an_address,
    test_unknown_is_no_report,
)
