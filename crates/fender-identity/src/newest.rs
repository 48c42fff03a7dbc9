//! The newest few of something, in a fixed number of places: the oldest is forgotten first.
//!
//! What it is for and what may be kept of it is for whoever keeps it to say.

/// At most `MOST` values.
#[derive(Debug)]
pub(crate) struct Newest<T, const MOST: usize> {
    kept: Vec<T>,
    /// The next to be forgotten, once there are so many.
    oldest: usize,
}

impl<T, const MOST: usize> Newest<T, MOST> {
    pub(crate) const fn new() -> Self {
        Self {
            kept: Vec::new(),
            oldest: 0,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.kept.iter()
    }

    pub(crate) fn add(&mut self, value: T) {
        if self.kept.len() < MOST {
            self.kept.push(value);
        } else if let Some(oldest) = self.kept.get_mut(self.oldest) {
            *oldest = value;
            self.oldest = (self.oldest + 1) % MOST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_and_no_more_is_kept_than_said() {
        let mut newest = Newest::<_, 3>::new();
        assert_eq!(newest.iter().count(), 0);
        for added in 1..=8_usize {
            newest.add(added);
            let mut kept: Vec<usize> = newest.iter().copied().collect();
            kept.sort_unstable();
            let first = added.saturating_sub(2).max(1);
            assert_eq!(kept, (first..=added).collect::<Vec<_>>());
        }
    }
}
