//! The commands that run a mesh. A build without the feature `control-plane` has none of them: it is a sidecar and the
//! tools to ask and to administer one.

use fender_control::Sealing;

use crate::cli::{Ca, CaCreateRoot, CaOffline, CaSignIntermediate, Command, Plane};
use crate::exit::{Failure, Outcome};
use crate::{blocking, control, demo, single, variables};

/// What seals the authority's keys, for the commands that make or use them. To be called before threads.
pub(crate) fn sealing(command: &Command) -> Result<Sealing, Failure> {
    if let Command::Plane(Plane::Control(args)) = command {
        return control::sealing(control::sealing_of(args));
    }
    if let Command::Ca(Ca::Offline(
        CaOffline::CreateRoot(CaCreateRoot { sealing, .. })
        | CaOffline::SignIntermediate(CaSignIntermediate { sealing, .. }),
    )) = command
    {
        return control::sealing(&sealing.into());
    }
    Ok(Sealing::default())
}

pub(crate) fn run(command: Plane, sealing: Sealing) -> Outcome {
    match command {
        Plane::Control(args) => {
            // Before any thread.
            let environment = variables::take(args.allow_environment.iter().cloned());
            let (asked, allow) = variables::allowed_aws(&args.allow_aws);
            let environment = environment.with_aws(variables::take_aws(asked, allow));
            blocking(control::run(*args, sealing, environment))
        }
        Plane::Demo(args) => single(demo::run(&args)),
        Plane::DemoApp(args) => single(demo::app(args)),
    }
}
