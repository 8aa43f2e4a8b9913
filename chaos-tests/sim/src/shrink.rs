//! Which of a failing run's faults it takes.

/// Leaves out one of `faults` after the other as long as the run still fails; returns the numbers of those that are needed.
pub fn shrink(faults: usize, mut fails: impl FnMut(&[usize]) -> bool) -> Vec<usize> {
    let mut kept: Vec<usize> = (0..faults).collect();
    let mut at = 0;
    while at < kept.len() {
        let mut fewer = kept.clone();
        fewer.remove(at);
        if fails(&fewer) {
            kept = fewer;
        } else {
            at += 1;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_needed_goes() {
        let needs = |wanted: &'static [usize]| {
            move |faults: &[usize]| wanted.iter().all(|number| faults.contains(number))
        };
        assert_eq!(shrink(6, needs(&[1, 4])), [1, 4]);
        assert_eq!(shrink(3, needs(&[])), [] as [usize; 0]);
        assert_eq!(shrink(2, needs(&[0, 1])), [0, 1]);
    }
}
