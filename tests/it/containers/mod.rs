//! Single containers, through the binary called `docker`: the sessions of the Workshop's first chapter as they are
//! printed, commands that die or race, what is left behind.
//!
//! They need root and run one after the other: the book's addresses, ports and control groups are taken as they are.

mod builds;
mod chapter;
mod faults;
mod groups;
mod links;
mod namespaces;
mod registries;
mod stage;

use stage::Stage;

/// A1 to A12, C1 to C4.
#[test]
fn the_first_containers_are_run_and_removed() {
    let Some(stage) = Stage::open("the_first_containers_are_run_and_removed") else { return };
    chapter::first_containers(&stage);
    chapter::logs_of_a_server(&stage);
}

/// D1 to D6, E1 to E16, WS-NS-08.
#[test]
fn namespaces_are_own_shared_or_the_hosts() {
    let Some(stage) = Stage::open("namespaces_are_own_shared_or_the_hosts") else { return };
    namespaces::host_name_and_processes(&stage);
    namespaces::joined_network(&stage);
    namespaces::the_hosts_network(&stage);
    namespaces::joined_processes(&stage);
}

/// A2-28, A2-30.
#[test]
fn rights_are_given_and_taken() {
    let Some(stage) = Stage::open("rights_are_given_and_taken") else { return };
    namespaces::the_host_itself(&stage);
    namespaces::rights(&stage);
}

/// F1 to F19, G1 and G2.
#[test]
fn control_groups_hold_containers_to_their_limits() {
    let Some(stage) = Stage::open("control_groups_hold_containers_to_their_limits") else { return };
    groups::where_they_are(&stage);
    groups::memory(&stage);
    groups::other_limits(&stage);
    groups::process_tree(&stage);
}

/// H5 to H13 with images of ours, I5 to I8.
#[test]
fn links_volumes_and_terminals_work_as_printed() {
    let Some(stage) = Stage::open("links_volumes_and_terminals_work_as_printed") else { return };
    links::a_counter_and_its_store(&stage);
    links::volumes(&stage);
    links::a_terminal(&stage);
}

/// B1 to B6, A2-05 to A2-08, A2-22.
#[test]
fn images_are_built_as_printed() {
    let Some(stage) = Stage::open("images_are_built_as_printed") else { return };
    builds::the_first_image(&stage);
    builds::layers_and_history(&stage);
}

/// I3 to I6, H3, H9.
#[test]
fn every_instruction_does_what_its_reference_says() {
    let Some(stage) = Stage::open("every_instruction_does_what_its_reference_says") else { return };
    builds::commands_and_settings(&stage);
    builds::bases_and_refusals(&stage);
}

/// C5 to C10.
#[test]
fn images_are_pushed_by_who_has_logged_in() {
    let Some(stage) = Stage::open("images_are_pushed_by_who_has_logged_in") else { return };
    registries::login_and_push(&stage);
}

/// KC-NS-03.
#[test]
fn mapped_users_are_nobody_outside() {
    let users = Some("usersRemap: {firstId: 100000, ids: 65536}\n");
    let Some(stage) = Stage::open_with("mapped_users_are_nobody_outside", users) else { return };
    namespaces::mapped_users(&stage);
}

#[test]
fn what_fails_says_so_as_docker_does() {
    let Some(stage) = Stage::open("what_fails_says_so_as_docker_does") else { return };
    faults::refusals(&stage);
    faults::a_program_that_is_not_there(&stage);
}

#[test]
fn names_and_ports_have_one_owner_whoever_asks_at_once() {
    let Some(stage) = Stage::open("names_and_ports_have_one_owner_whoever_asks_at_once") else { return };
    faults::races(&stage);
}

#[test]
fn what_a_killed_command_left_is_removed() {
    let Some(stage) = Stage::open("what_a_killed_command_left_is_removed") else { return };
    faults::killed_commands(&stage);
    faults::killed_shims(&stage);
}
