//! Other policies than the engine's, each as its authors describe it, in as few lines as possible.
//!
//! Capacities count bytes. An object that exceeds the capacity is not stored.

/// An eviction policy with the cache that it manages.
pub trait Policy {
    /// Request an object at `now`, in microseconds. True: a hit.
    fn request(&mut self, object: u32, now: u64) -> bool;
}

/// End of a list.
const NONE: u32 = u32::MAX;

/// Requests in the small queue of S3-FIFO after which an object moves to the main one.
const PROMOTED: u8 = 2;

/// Objects in the order in which they were pushed.
struct List<'a> {
    sizes: &'a [u64],
    /// By object: its neighbours, if it is in the list.
    links: Vec<Option<Links>>,
    newest: u32,
    oldest: u32,
    bytes: u64,
}

#[derive(Clone, Copy)]
struct Links {
    newer: u32,
    older: u32,
}

/// Least recently used first.
pub struct Lru<'a> {
    list: List<'a>,
    capacity: u64,
}

/// SIEVE (Zhang et al., NSDI 2024): a queue that is never reordered, and a hand that passes over
/// what was requested since its last round.
pub struct Sieve<'a> {
    queue: List<'a>,
    capacity: u64,
    visited: Vec<bool>,
    hand: u32,
}

/// S3-FIFO (Yang et al., SOSP 2023): a queue for new objects with a tenth of the capacity, one for
/// those requested again, and the names of objects that have left the first queue.
pub struct S3Fifo<'a> {
    small: List<'a>,
    main: List<'a>,
    capacity: u64,
    /// Requests since the last move, at most 3.
    uses: Vec<u8>,
    /// Objects that have left the small queue, as many bytes as the main queue may have.
    ghosts: List<'a>,
}

/// W-TinyLFU (Einziger et al., TOS 2017): a window of 1 %, a segmented LRU behind it, and admission
/// by frequency. The frequencies are exact; the real policy has a sketch of them.
pub struct WTinyLfu<'a> {
    window: List<'a>,
    probation: List<'a>,
    protected: List<'a>,
    capacity: u64,
    admission: Admission,
    /// Requests, at most 15, halved at the end of each sample.
    counts: Vec<u8>,
    counted: u64,
    sample: u64,
}

/// Entries than which a candidate has to be requested more often.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Each victim in turn, as Caffeine does it.
    EachVictim,
    /// All victims together that the candidate's size takes (Einziger et al., 2021, AV).
    AllVictims,
}

// === impl List ===

impl<'a> List<'a> {
    fn new(sizes: &'a [u64]) -> Self {
        Self {
            sizes,
            links: vec![None; sizes.len()],
            newest: NONE,
            oldest: NONE,
            bytes: 0,
        }
    }

    fn has(&self, object: u32) -> bool {
        self.links[object as usize].is_some()
    }

    fn links(&mut self, object: u32) -> &mut Links {
        self.links[object as usize].as_mut().expect("in the list")
    }

    fn size(&self, object: u32) -> u64 {
        self.sizes[object as usize]
    }

    fn push(&mut self, object: u32) {
        self.links[object as usize] = Some(Links {
            newer: NONE,
            older: self.newest,
        });
        match self.newest {
            NONE => self.oldest = object,
            newest => self.links(newest).newer = object,
        }
        self.newest = object;
        self.bytes += self.size(object);
    }

    fn remove(&mut self, object: u32) {
        let links = self.links[object as usize].take();
        let Links { newer, older } = links.expect("in the list");
        match newer {
            NONE => self.newest = older,
            newer => self.links(newer).older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.links(older).newer = newer,
        }
        self.bytes -= self.size(object);
    }

    fn renew(&mut self, object: u32) {
        self.remove(object);
        self.push(object);
    }

    fn pop(&mut self) -> Option<u32> {
        let oldest = self.oldest;
        (oldest != NONE).then(|| {
            self.remove(oldest);
            oldest
        })
    }

    fn oldest(&self) -> impl Iterator<Item = u32> + use<'_, 'a> {
        let listed = |object: u32| (object != NONE).then_some(object);
        let newer = move |object: &u32| {
            let links = self.links[*object as usize];
            links.and_then(|links| listed(links.newer))
        };
        std::iter::successors(listed(self.oldest), newer)
    }
}

// === impl Lru ===

impl<'a> Lru<'a> {
    pub fn new(sizes: &'a [u64], capacity: u64) -> Self {
        Self {
            list: List::new(sizes),
            capacity,
        }
    }
}

impl Policy for Lru<'_> {
    fn request(&mut self, object: u32, _now: u64) -> bool {
        let size = self.list.size(object);
        if self.list.has(object) {
            self.list.renew(object);
            return true;
        }
        if size <= self.capacity {
            while self.list.bytes + size > self.capacity {
                self.list.pop();
            }
            self.list.push(object);
        }
        false
    }
}

// === impl Sieve ===

impl<'a> Sieve<'a> {
    pub fn new(sizes: &'a [u64], capacity: u64) -> Self {
        Self {
            queue: List::new(sizes),
            capacity,
            visited: vec![false; sizes.len()],
            hand: NONE,
        }
    }

    fn evict(&mut self) {
        loop {
            let object = match self.hand {
                NONE => self.queue.oldest,
                hand => hand,
            };
            self.hand = self.queue.links(object).newer;
            if !std::mem::take(&mut self.visited[object as usize]) {
                return self.queue.remove(object);
            }
        }
    }
}

impl Policy for Sieve<'_> {
    fn request(&mut self, object: u32, _now: u64) -> bool {
        let size = self.queue.size(object);
        if self.queue.has(object) {
            self.visited[object as usize] = true;
            return true;
        }
        if size <= self.capacity {
            while self.queue.bytes + size > self.capacity {
                self.evict();
            }
            self.queue.push(object);
        }
        false
    }
}

// === impl S3Fifo ===

impl<'a> S3Fifo<'a> {
    pub fn new(sizes: &'a [u64], capacity: u64) -> Self {
        Self {
            small: List::new(sizes),
            main: List::new(sizes),
            capacity,
            uses: vec![0; sizes.len()],
            ghosts: List::new(sizes),
        }
    }

    fn evict(&mut self) {
        if self.small.bytes >= self.capacity / 10 || self.main.bytes == 0 {
            self.evict_small();
        } else {
            self.evict_main();
        }
    }

    fn evict_small(&mut self) {
        while let Some(object) = self.small.pop() {
            let uses = std::mem::take(&mut self.uses[object as usize]);
            if uses < PROMOTED {
                self.ghosts.push(object);
                while self.ghosts.bytes > self.capacity / 10 * 9 {
                    self.ghosts.pop();
                }
                return;
            }
            self.main.push(object);
        }
    }

    fn evict_main(&mut self) {
        while let Some(object) = self.main.pop() {
            match &mut self.uses[object as usize] {
                0 => return,
                uses => *uses -= 1,
            }
            self.main.push(object);
        }
    }
}

impl Policy for S3Fifo<'_> {
    fn request(&mut self, object: u32, _now: u64) -> bool {
        let size = self.main.size(object);
        if self.small.has(object) || self.main.has(object) {
            let uses = &mut self.uses[object as usize];
            *uses = (*uses + 1).min(3);
            return true;
        }
        if size <= self.capacity {
            while self.small.bytes + self.main.bytes + size > self.capacity {
                self.evict();
            }
            self.uses[object as usize] = 0;
            if self.ghosts.has(object) {
                self.ghosts.remove(object);
                self.main.push(object);
            } else {
                self.small.push(object);
            }
        }
        false
    }
}

// === impl WTinyLfu ===

impl<'a> WTinyLfu<'a> {
    pub fn new(sizes: &'a [u64], capacity: u64, admission: Admission) -> Self {
        let mean = sizes.iter().sum::<u64>() / sizes.len() as u64;
        Self {
            window: List::new(sizes),
            probation: List::new(sizes),
            protected: List::new(sizes),
            capacity,
            admission,
            counts: vec![0; sizes.len()],
            counted: 0,
            // Ten times as many as there are entries.
            sample: 10 * capacity / mean,
        }
    }

    fn count(&mut self, object: u32) {
        let count = &mut self.counts[object as usize];
        *count = (*count + 1).min(15);
        self.counted += 1;
        if self.counted >= self.sample {
            self.counted /= 2;
            self.counts.iter_mut().for_each(|count| *count /= 2);
        }
    }

    fn main(&self) -> u64 {
        self.capacity - self.capacity / 100
    }

    /// A candidate has left the window.
    fn admit(&mut self, candidate: u32) {
        let size = self.window.size(candidate);
        if size > self.main() {
            return;
        }
        let taken = self.probation.bytes + self.protected.bytes;
        let mut excess = (taken + size).saturating_sub(self.main());
        let mut victims = Vec::new();
        for victim in self.probation.oldest().chain(self.protected.oldest()) {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(self.window.size(victim));
            victims.push(victim);
        }
        let count = |object: u32| u32::from(self.counts[object as usize]);
        let uses = count(candidate);
        let evicted = match self.admission {
            Admission::AllVictims => {
                let of_victims: u32 = victims.iter().copied().map(count).sum();
                match victims.is_empty() || uses > of_victims {
                    true => victims.len(),
                    false => 0,
                }
            }
            Admission::EachVictim => {
                let loses = |victim: &&u32| uses > count(**victim);
                victims.iter().take_while(loses).count()
            }
        };
        for victim in &victims[..evicted] {
            match self.probation.has(*victim) {
                true => self.probation.remove(*victim),
                false => self.protected.remove(*victim),
            }
        }
        if evicted == victims.len() {
            self.probation.push(candidate);
        }
    }
}

impl Policy for WTinyLfu<'_> {
    fn request(&mut self, object: u32, _now: u64) -> bool {
        self.count(object);
        if self.window.has(object) {
            self.window.renew(object);
            return true;
        }
        if self.protected.has(object) {
            self.protected.renew(object);
            return true;
        }
        if self.probation.has(object) {
            self.probation.remove(object);
            self.protected.push(object);
            while self.protected.bytes > self.main() / 5 * 4 {
                let Some(demoted) = self.protected.pop() else {
                    break;
                };
                self.probation.push(demoted);
            }
            return true;
        }
        self.window.push(object);
        while self.window.bytes > self.capacity / 100 {
            let Some(candidate) = self.window.pop() else {
                break;
            };
            self.admit(candidate);
        }
        false
    }
}
