//! `enlist config`: configuration values are read, written, watched, compared, and moved to and from files. Begin with
//! `values.rs`, which has the access to the store that all commands share.

mod content;
mod decision;
mod diff;
mod directory;
mod edit;
mod file_names;
mod following;
mod plan;
mod program;
mod reruns;
mod single;
mod transfer;
mod value_file;
mod values;
mod watch;

use self::values::Values;
use crate::{
    args::{ConfigCommand, Global},
    output::{Failure, Output},
};

pub(crate) async fn run(global: &Global, command: ConfigCommand, output: Output) -> Result<u8, Failure> {
    let values = Values::new(global, output)?;
    match command {
        ConfigCommand::Get(get) => single::get(&values, &get).await,
        ConfigCommand::Set(set) => single::set(&values, set).await,
        ConfigCommand::Edit(edit) => edit::edit(&values, &edit).await,
        ConfigCommand::Delete(delete) => single::delete(&values, &delete).await,
        ConfigCommand::List(list) => values::list(&values, &list).await,
        ConfigCommand::History(history) => values::history(&values, &history).await,
        ConfigCommand::Watch(watch) => watch::watch(&values, watch).await,
        ConfigCommand::Diff(diff) => diff::diff(&values, &diff).await,
        ConfigCommand::Import(import) => transfer::import(&values, &import).await,
        ConfigCommand::Export(export) => transfer::export(&values, &export).await,
    }
}
