//! The one thread that writes.
//!
//! It takes what is queued as one group: one write, one sync, then all answers in order. While it syncs, the next group
//! gathers in the queue, so a busy log syncs for many at once and an idle one does not wait for company.
//!
//! The first error is final. What reached the disk is unknown then and `fdatasync` must not be tried again (a second
//! one can succeed without having written anything), so from there on all are answered with that error.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::Receiver,
    },
    thread,
    time::Instant,
};

use tokio::sync::watch;

use super::{
    Failure, GROUP_BYTES_MAX, Hint, Job, Options, Reach,
    mark::Mark,
    record::{self, Place, Record},
    recover::Recovered,
    segment::{self, Header},
    state::State,
};
use crate::fail;

pub struct Flusher {
    dir: PathBuf,
    options: Options,
    mark: Mark,
    marked: Instant,
    state: State,
    header: Header,
    file: File,
    /// Where the next record goes. All before it is synced.
    end: Place,
    /// Where the file ends: zeros lie between.
    file_end: u64,
    hint: Arc<Mutex<Hint>>,
    /// Jobs that were taken from the queue.
    jobs: u64,
    buffer: Vec<u8>,
    bytes: Arc<AtomicU64>,
    failure: Arc<watch::Sender<Option<Failure>>>,
}

impl Flusher {
    /// Goes on where `recovered` ends; makes a segment if there is none to go on with.
    pub fn new(
        dir: PathBuf,
        options: Options,
        recovered: Recovered,
        hint: Arc<Mutex<Hint>>,
        bytes: Arc<AtomicU64>,
        failure: Arc<watch::Sender<Option<Failure>>>,
    ) -> io::Result<Self> {
        let Recovered { mut mark, mut state, open, end } = recovered;
        mark.set(end)?;
        let (header, file, end) = match open {
            Some((header, file)) => (header, file, end),
            None => begin_segment(&dir, &mut mark, &mut state, end)?,
        };
        bytes.store(state.bytes(), Ordering::Relaxed);
        let marked = Instant::now();
        Ok(Self {
            dir,
            options,
            mark,
            marked,
            state,
            header,
            file,
            end,
            file_end: end.offset,
            hint,
            jobs: 0,
            buffer: Vec::new(),
            bytes,
            failure,
        })
    }

    /// Works until the queue is closed and empty.
    pub fn run(mut self, queue: &Receiver<Job>) {
        while let Some((mut group, mark_is_due)) = self.next(queue) {
            let failed = self.write(&mut group).err().map(|e| self.fail("written", &e));
            group.into_iter().for_each(|job| job.answer(failed.as_ref()));
            let failed = failed.or_else(|| self.tidy(mark_is_due).err().map(|e| self.fail("kept in order", &e)));
            if let Some(failure) = failed {
                return queue.iter().for_each(|job| job.answer(Some(&failure)));
            }
        }
        if let Err(e) = self.trim() {
            self.fail("closed", &e);
        }
    }

    fn fail(&self, what: &str, error: &io::Error) -> Failure {
        let failure = Failure::from(format!(
            "the log in {} cannot be {what}: {error}. Make room or repair the disk, then start this node again: what it has \
             acknowledged is kept",
            self.dir.display()
        ));
        tracing::error!("{failure}");
        self.failure.send_replace(Some(Failure::clone(&failure)));
        failure
    }

    /// The next group: what is queued, up to [`GROUP_BYTES_MAX`]. When there is nothing for [`Options::mark_every`], or
    /// ever again, an empty group in which the mark catches up; `None` once it has.
    fn next(&mut self, queue: &Receiver<Job>) -> Option<(Vec<Job>, bool)> {
        let first = if self.rests() {
            queue.recv().ok()?
        } else {
            match queue.recv_timeout(self.options.mark_every) {
                Ok(job) => job,
                Err(_) => return Some((vec![], true)),
            }
        };
        self.hint().resting = false;
        let mut bytes = first.bytes();
        let mut group = vec![first];
        while bytes < GROUP_BYTES_MAX
            && let Ok(job) = queue.try_recv()
        {
            bytes += job.bytes();
            group.push(job);
        }
        self.jobs += group.len() as u64;
        Some((group, self.marked.elapsed() >= self.options.mark_every))
    }

    /// Whether there is nothing to do until somebody asks. Whoever hints from now on asks as well.
    fn rests(&self) -> bool {
        let mut hint = self.hint();
        hint.resting = hint.point(self.reach()).is_none() && self.mark.at() == self.end;
        hint.resting
    }

    fn reach(&self) -> Reach {
        Reach { next: self.state.span.next, jobs: self.jobs }
    }

    fn hint(&self) -> MutexGuard<'_, Hint> {
        self.hint.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One write and one sync for the whole group, and a commit point with it: of its own it is not written before the mark is.
    fn write(&mut self, group: &mut [Job]) -> io::Result<()> {
        let alone = group.iter().all(|job| job.records.is_empty());
        if alone && (!group.is_empty() || self.hint().point(self.reach()).is_none()) {
            return Ok(());
        }
        if self.end.offset >= self.options.segment_bytes {
            self.trim()?;
            (self.header, self.file, self.end) = begin_segment(&self.dir, &mut self.mark, &mut self.state, self.end)?;
            self.file_end = self.end.offset;
        }
        self.buffer.clear();
        record::frame_group(&mut self.buffer, self.header.spot(self.end.offset));
        for job in group {
            job.place = Place { offset: self.end.offset + self.buffer.len() as u64, ..self.end };
            job.records.iter().try_for_each(|record| self.add(record))?;
        }
        let committed = self.hint().take(self.reach());
        committed.iter().try_for_each(|record| self.add(record))?;
        fail::point("log-before-write")?;
        self.file.write_all_at(&self.buffer, self.end.offset)?;
        fail::point("log-after-write")?;
        (self.options.sync)(&self.file)?;
        fail::point("log-after-sync")?;
        self.end.offset += self.buffer.len() as u64;
        self.file_end = self.file_end.max(self.end.offset);
        Ok(())
    }

    fn add(&mut self, record: &Record<'_>) -> io::Result<()> {
        self.state.apply(record)?;
        record.frame(&mut self.buffer, self.header.spot(self.end.offset));
        Ok(())
    }

    /// Writes zeros behind the end once half of them are used up. The next group's sync takes them along.
    fn write_ahead(&mut self) -> io::Result<()> {
        let ahead = self.options.ahead_bytes;
        if self.file_end - self.end.offset < ahead.div_ceil(2) {
            let zeros = vec![0; (self.end.offset + ahead - self.file_end) as usize];
            self.file.write_all_at(&zeros, self.file_end)?;
            self.file_end += zeros.len() as u64;
        }
        Ok(())
    }

    /// Ends the file where its last record ends.
    fn trim(&mut self) -> io::Result<()> {
        if self.file_end > self.end.offset {
            self.file.set_len(self.end.offset)?;
            self.file.sync_all()?;
            self.file_end = self.end.offset;
        }
        Ok(())
    }

    /// What can wait until everybody has an answer: files that are no longer needed, room for the next groups, and the mark.
    fn tidy(&mut self, mark_is_due: bool) -> io::Result<()> {
        let mut removed = false;
        while let Some(segment) = self.state.take_unneeded() {
            fs::remove_file(segment::path(&self.dir, segment.number))?;
            removed = true;
        }
        if removed {
            segment::sync_dir(&self.dir)?;
        }
        self.write_ahead()?;
        if mark_is_due {
            self.mark.set(self.end)?;
            self.marked = Instant::now();
        }
        if let Some(segment) = self.state.segments.back_mut() {
            segment.bytes = self.end.offset;
        }
        self.bytes.store(self.state.bytes(), Ordering::Relaxed);
        Ok(())
    }
}

/// A panic is as final as an error. (Those who wait are answered when their jobs are dropped.)
impl Drop for Flusher {
    fn drop(&mut self) {
        if thread::panicking() {
            self.failure.send_replace(Some(Arc::from("the thread that writes the log has panicked")));
        }
    }
}

/// Makes the segment after the one that ends at `end`, which is synced. The mark moves to the very end of the old one
/// first and to the new one before its first group, so neither can go missing unnoticed.
fn begin_segment(dir: &Path, mark: &mut Mark, state: &mut State, end: Place) -> io::Result<(Header, File, Place)> {
    mark.set(end)?;
    if let Some(old) = state.segments.back_mut() {
        old.bytes = end.offset;
    }
    let header = Header::after(end, state.span);
    let (file, offset) = segment::create(dir, &header, &state.carry)?;
    state.begin(header.number);
    let end = Place { segment: header.number, offset };
    mark.set(end)?;
    Ok((header, file, end))
}
