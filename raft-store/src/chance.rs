//! Numbers drawn at random: by the kernel, or by the seed of a simulation.
//!
//! For all that a replica draws while it works, above the store as well: a simulated run is a function of its seed only if everything
//! asks here. Keys and secrets do not: they come from the cryptographic library.

use rand::Rng;

/// Where numbers come from.
#[cfg(not(feature = "simulation"))]
pub fn rng() -> impl Rng {
    rand::rng()
}

/// Where numbers come from: in a simulation its seed.
#[cfg(feature = "simulation")]
pub fn rng() -> impl Rng {
    use rand::SeedableRng as _;
    rand::rngs::StdRng::seed_from_u64(crate::simulation::number())
}

/// The next one.
pub(crate) fn number() -> u64 {
    rng().random()
}
