//! Numbers drawn at random: by the kernel, or by the seed of a simulation.

/// The next one.
#[cfg(not(feature = "simulation"))]
pub(crate) fn number() -> u64 {
    rand::random()
}

#[cfg(feature = "simulation")]
pub(crate) use crate::simulation::number;
