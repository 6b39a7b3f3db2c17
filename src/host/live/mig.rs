//! MIG of a card: what the plan says, and nothing that is there beside it, as the card is at this moment.

use super::{DRIVER_LIMIT, Live, program};
use crate::gpu::mig::{self, Instance, MigCard, Told, words};
use crate::host::{HostError, Program, Running};
use crate::plan::{Diff, MigState, MigStep};
use crate::resource::mig::{in_use, state};
use crate::types::PciAddress;

/// A card that is reset takes its time beside that.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(4 * DRIVER_LIMIT.as_secs());

fn asked(host: &Live, card: PciAddress) -> Result<MigCard, HostError> {
    match mig::ask(host, card) {
        Told::Card(card) => Ok(card),
        Told::Without => Err(HostError::Refused(format!("{card} cannot be cut into MIG instances"))),
        Told::Unknown(why) => Err(mig::unknown(card, &why)),
    }
}

/// Takes what goes, turns the mode, makes what comes; each only where the card is as the plan knew it.
pub(super) fn set(step: &MigStep, host: &Live, running: &mut Running<'_>) -> Result<(), HostError> {
    let (at, before, after) = (step.physical, &step.before, &step.after);
    let mut card = asked(host, at)?;
    let known = |state: &MigState, i: &Instance| state.has(&i.profile, i.start);
    if let Some(new) = card.instances.iter().find(|i| !known(before, i) && !known(after, i)) {
        let (profile, start) = (&new.profile, new.start);
        let why =
            format!("{at} has an instance {profile} at {start} that was not there when the plan was made; plan again");
        return Err(HostError::Refused(why));
    }
    let used = in_use(&card, |i| !known(after, i), after.on != card.on);
    if let Some(Diff::Blocked { why, .. } | Diff::Unknown { why }) = used {
        return Err(HostError::Refused(why));
    }
    let mut run = |args: Vec<String>| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        program::perform(Program::NvidiaSmi, &args, LIMIT, running.progress)
    };
    for one in card.instances.iter().filter(|i| !known(after, i)) {
        if one.compute > 0 {
            run(words::take(at, one.id, true))?;
        }
        run(words::take(at, one.id, false))?;
    }
    if card.on != after.on {
        run(words::mode(at, after.on))?;
        card = asked(host, at)?;
        if card.on != after.on {
            if card.pending != after.on {
                return Err(HostError::Refused(format!("nvidia-smi did not change MIG mode of {at}")));
            }
            running.notes.push(format!(
                "MIG mode of {at} changes once the card is reset: `nvidia-smi --gpu-reset -i {at}` while nobody uses it \
                 and gpuvm apply then, or a reboot"
            ));
            return Ok(());
        }
    }
    if !after.on {
        return Ok(());
    }
    card = asked(host, at)?;
    let make = missing(after, &card)?;
    if !make.is_empty() {
        run(words::make(at, &make))?;
    }
    for one in card.instances.iter().filter(|i| i.compute == 0) {
        run(words::compute(at, one.id))?;
    }
    let is = asked(host, at)?;
    match missing(after, &is)?.is_empty() && is.instances.len() == after.instances.len() {
        true => Ok(()),
        false => Err(HostError::Refused(format!("MIG of {at} is {} now, and was to be {after}", state(&is)))),
    }
}

/// What is to be made, and where.
fn missing(after: &MigState, card: &MigCard) -> Result<Vec<(String, u32)>, HostError> {
    let placed: Option<Vec<(String, u32)>> =
        after.instances.iter().map(|i| Some((i.profile.clone(), i.start?))).collect();
    if let Some(all) = placed {
        let there = |(profile, start): &(String, u32)| {
            card.instances.iter().any(|i| i.profile == *profile && i.start == *start)
        };
        return Ok(all.into_iter().filter(|one| !there(one)).collect());
    }
    let Some(profiles) = &card.profiles else {
        return Err(HostError::Refused("the card does not tell of its profiles, though MIG mode is on".to_owned()));
    };
    let wanted: Vec<String> = after.instances.iter().map(|i| i.profile.clone()).collect();
    let all =
        mig::arrange(card, profiles, &wanted).map_err(|no| HostError::Refused(format!("{}: {}", no.why, no.help)))?;
    Ok(all.make)
}
