//! ImageLocality: a node that has the pod's images already starts it sooner. An image that few nodes have
//! counts less, so that pods do not heap up where one was pulled first.

use crate::framework::{Group, Plugin, PreScore, Recount, SCORE_MAX, ScoreState};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::snapshot::Snapshot;

/// Less than this saves nothing, in bytes.
const SIZE_MIN: i64 = 23 * 1024 * 1024;
/// More than this per container saves no more, in bytes.
const SIZE_MAX_PER_CONTAINER: i64 = 1000 * 1024 * 1024;

/// Prefers nodes that have the images of the pod's containers.
#[derive(Debug, Clone, Copy)]
pub struct ImageLocality;

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn pre_score(&self) -> Option<&dyn PreScore> {
        Some(self)
    }
}

impl PreScore for ImageLocality {
    fn pre_score(&self, pod: &PodInfo, cluster: Snapshot<'_>) -> Option<Box<dyn ScoreState>> {
        let images = pod.class.images.clone();
        let sizes = vec![0; images.len()];
        let here = vec![0; images.len() * cluster.nodes().len()];
        (!images.is_empty()).then(|| Box::new(Images { images, nodes_with: sizes, here }) as Box<_>)
    }
}

#[derive(Debug)]
struct Images {
    images: Vec<String>,
    /// By image: how many nodes have it.
    nodes_with: Vec<i64>,
    /// By node, then by image: its size there, 0 when it is not there.
    here: Vec<i64>,
}

impl ScoreState for Images {
    fn recount(&mut self, at: usize, node: &NodeInfo, _cluster: Snapshot<'_>) -> Recount {
        for (image, name) in self.images.iter().enumerate() {
            let size = node.object.images.get(name).copied().unwrap_or(0);
            let before = std::mem::replace(&mut self.here[at * self.images.len() + image], size);
            self.nodes_with[image] += i64::from(size > 0) - i64::from(before > 0);
        }
        Recount::Kept
    }

    fn facets(&self, at: usize, _node: &NodeInfo, facets: &mut Vec<i64>) {
        let images = self.images.len();
        facets.extend(&self.here[at * images..(at + 1) * images]);
    }

    fn score(&self, groups: &[Group<'_>], scores: &mut [i64]) {
        let nodes = ((self.here.len() / self.images.len()) as f64).max(1.0);
        let most = SIZE_MAX_PER_CONTAINER * self.images.len() as i64;
        for (group, score) in groups.iter().zip(scores.iter_mut()) {
            let sizes = group.facets.iter().zip(&self.nodes_with);
            let sum: i64 = sizes.map(|(size, with)| (*size as f64 * (*with as f64 / nodes)) as i64).sum();
            *score = SCORE_MAX * (sum.clamp(SIZE_MIN, most) - SIZE_MIN) / (most - SIZE_MIN);
        }
    }
}
