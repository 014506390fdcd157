//! The spool's file: requests in the order in which they came, in an SQLite database that one process has at a time.
//! What is committed survives the end of mqspan by any signal; a power cut only where every commit is synced.

use std::fs::{self, DirBuilder};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use tracing::warn;

use crate::export::batch::Encoding;
use crate::model::error::Error;
use crate::model::values::Signal;

const FILE: &str = "spool.sqlite";
/// `mqsp`: what makes the file known as a spool (SQLite's application_id).
const APPLICATION: i32 = 0x6d71_7370;
/// The layout of the tables (SQLite's user_version). A later one reads what earlier ones wrote, or says that it can't.
const FORMAT: i32 = 1;
/// Pages that are free are given back when that is asked for (SQLite's auto_vacuum).
const INCREMENTAL: i32 = 2;
/// What SQLite keeps besides the pages that are counted: its log of changes, which a change may exceed before it is
/// written back. A change has some 2 MiB.
const LOG: u64 = 4 << 20;
/// The log is written back once it has so many bytes.
const WRITE_BACK: u64 = 1 << 20;
/// Pages that a request may need besides those of its bytes: its row's, and splits in the indices.
const AROUND: u64 = 8;
/// No request has so many bytes.
const MOST_BODY: u64 = 16 << 20;
/// As many damaged files are kept.
const ASIDE: usize = 3;
/// The least that a spool may hold, its log included.
pub const LEAST: u64 = 2 * LOG;

/// A request to be kept.
#[derive(Debug)]
pub struct NewRow<'a> {
    /// Which signal.
    pub signal: Signal,
    /// Its encoding.
    pub encoding: Encoding,
    /// The batch that its calls belong to, the same for its requests to several backends.
    pub batch: u64,
    /// The calls of the batch; 0 where they are counted already, or where there are none.
    pub calls: u64,
    /// Its records.
    pub records: u64,
    /// The request, not compressed.
    pub body: &'a [u8],
}

/// A request that was kept.
#[derive(Debug)]
pub struct Row {
    /// Its number, in the order of arrival.
    pub id: i64,
    /// Its encoding.
    pub encoding: Encoding,
    /// As in [`NewRow`].
    pub batch: u64,
    /// As in [`NewRow`].
    pub calls: u64,
    /// Its records.
    pub records: u64,
    /// The request.
    pub body: Vec<u8>,
}

/// A request on disk, without itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpooledRow {
    /// Its number.
    pub id: i64,
    /// Its signal.
    pub signal: Signal,
    /// As in [`NewRow`].
    pub batch: u64,
    /// As in [`NewRow`].
    pub calls: u64,
}

/// Why a request can't be read.
#[derive(Debug)]
pub enum ReadError {
    /// It does not hold what it says.
    Row(SpooledRow),
    /// The file.
    File(rusqlite::Error),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::File(error)
    }
}

/// Whether the file's contents do not hold together.
pub fn is_damaged(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// The open file.
#[derive(Debug)]
pub struct Store {
    db: Connection,
    /// Bytes of a page.
    page: u64,
    most_pages: u64,
}

/// Why the file can't be used.
enum Unusable {
    /// For a reason that has a way out.
    Refused(Error),
    /// Its contents do not hold together.
    Damaged(String),
}

impl From<rusqlite::Error> for Unusable {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            _ if is_damaged(&error) => Self::Damaged(error.to_string()),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Refused(Error::cannot_run(
                "--spool: another mqspan uses it",
                "give each mqspan a folder of its own, or end the other one",
            )),
            _ => Self::Refused(Error::cannot_run(
                format!("--spool: {error}"),
                "name a folder that mqspan may write, on a disk that is not full",
            )),
        }
    }
}

impl Store {
    /// Opens the spool in a folder, which is made where it is missing, and checks it. A file that is damaged is put
    /// aside: nothing in it can be trusted.
    pub fn open(folder: &Path, bytes: u64, sync: bool) -> Result<Self, Error> {
        if bytes < LEAST {
            return Err(Error::cannot_run(
                format!("--spool-size: a spool of {bytes} bytes is too small"),
                format!("give at least {} MiB", LEAST >> 20),
            ));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
            Error::cannot_run(format!("--spool {}: {error}", folder.display()), "name a folder that mqspan may make")
        })?;
        let path = folder.join(FILE);
        match Self::try_open(&path, bytes, sync) {
            Ok(store) => Ok(store),
            Err(Unusable::Refused(error)) => Err(error),
            Err(Unusable::Damaged(why)) => {
                let aside = put_aside(&path)?;
                warn!("the spool is damaged ({why}): what was in it is lost, the file is now {}", aside.display());
                Self::try_open(&path, bytes, sync).map_err(|unusable| match unusable {
                    Unusable::Refused(error) => error,
                    Unusable::Damaged(why) => {
                        Error::cannot_run(format!("--spool: a new spool is damaged: {why}"), "check the disk")
                    }
                })
            }
        }
    }

    fn try_open(path: &Path, bytes: u64, sync: bool) -> Result<Self, Unusable> {
        let db = Connection::open(path)?;
        db.busy_timeout(Duration::ZERO)?;
        // The order matters: the lock is taken by the first access, which without it would need a file for memory that is
        // shared; vacuuming is decided before the first table, and only then, since it is a change. A full disk has room
        // for neither.
        db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        if db.pragma_query_value(None, "auto_vacuum", |row| row.get::<_, i32>(0))? != INCREMENTAL {
            db.pragma_update(None, "auto_vacuum", INCREMENTAL)?;
        }
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", if sync { "FULL" } else { "OFF" })?;
        db.pragma_update(None, "journal_size_limit", LOG as i64)?;
        db.pragma_update(None, "cache_size", -1024)?; // KiB
        db.execute_batch("BEGIN IMMEDIATE; COMMIT")?;
        let number = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
        match (number("application_id")?, number("user_version")?, number("schema_version")?) {
            (0, 0, 0) => create(&db)?,
            (APPLICATION, FORMAT, _) => {}
            (APPLICATION, format, _) => {
                return Err(Unusable::Refused(Error::cannot_run(
                    format!(
                        "--spool: it was made by another version of mqspan (format {format}, this one is {FORMAT})"
                    ),
                    "let that version deliver it, or name another folder",
                )));
            }
            _ => {
                return Err(Unusable::Refused(Error::cannot_run(
                    format!("--spool: {FILE} in it is another program's"),
                    "name another folder, or move the file away",
                )));
            }
        }
        let verdict: String = db.pragma_query_value(None, "quick_check", |row| row.get(0))?;
        if verdict != "ok" {
            return Err(Unusable::Damaged(verdict));
        }
        let page: u64 = db.pragma_query_value(None, "page_size", |row| row.get::<_, i64>(0))?.unsigned_abs();
        db.pragma_update(None, "wal_autocheckpoint", (WRITE_BACK / page) as i64)?;
        Ok(Self { db, page, most_pages: (bytes - LOG) / page })
    }

    /// Puts the file aside and begins a new one, whose requests have numbers beyond `last`; where the old one is now.
    pub fn begin_anew(&mut self, folder: &Path, bytes: u64, sync: bool, last: i64) -> Result<PathBuf, Error> {
        let path = folder.join(FILE);
        let aside = put_aside(&path)?;
        *self = Self::try_open(&path, bytes, sync).map_err(|unusable| match unusable {
            Unusable::Refused(error) => error,
            Unusable::Damaged(why) => {
                Error::cannot_run(format!("--spool: a new spool is damaged: {why}"), "check the disk")
            }
        })?;
        let number = self.db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('requests', ?1)", [last]);
        number.map_err(|error| Error::cannot_run(format!("--spool: {error}"), "check the disk"))?;
        Ok(aside)
    }

    /// The highest number that a request in it ever had; 0 where there was none.
    pub fn last(&self) -> rusqlite::Result<i64> {
        let last = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'requests'";
        self.db.query_row(last, [], |row| row.get(0))
    }

    /// The calls of all batches in it.
    pub fn calls(&self) -> rusqlite::Result<u64> {
        let sum = "SELECT coalesce(sum(calls), 0) FROM (SELECT max(calls) AS calls FROM requests GROUP BY batch)";
        self.db.query_row(sum, [], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
    }

    /// The requests of a signal in it.
    pub fn count(&self, signal: Signal) -> rusqlite::Result<u64> {
        let count = "SELECT count(*) FROM requests WHERE signal = ?1";
        self.db.query_row(count, [signal as i64], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
    }

    /// The calls of a batch are this request's from now on, none of others of the batch.
    pub fn take_over_calls(&self, batch: u64, id: i64, calls: u64) -> rusqlite::Result<()> {
        if calls > 0 {
            self.db
                .prepare_cached("UPDATE requests SET calls = 0 WHERE batch = ?1 AND id <> ?2 AND calls > 0")?
                .execute(params![batch.cast_signed(), id])?;
        }
        Ok(())
    }

    /// The calls of a batch are another of its requests' from now on; false where there is no other.
    pub fn move_calls_to_another(&self, batch: u64, id: i64, calls: u64) -> rusqlite::Result<bool> {
        let other = "UPDATE requests SET calls = ?3 WHERE id = \
                     (SELECT min(id) FROM requests WHERE batch = ?1 AND id <> ?2)";
        let changed = self.db.prepare_cached(other)?.execute(params![batch.cast_signed(), id, calls.cast_signed()])?;
        Ok(changed > 0)
    }

    /// A request is not looked at any more; it stays for whoever wants to find out why.
    pub fn set_aside(&self, id: i64) -> rusqlite::Result<()> {
        let aside = "UPDATE requests SET signal = signal - 10, calls = 0 WHERE id = ?1 AND signal >= 0";
        self.db.prepare_cached(aside)?.execute([id])?;
        Ok(())
    }

    /// Takes requests in and others out, all or nothing. Returns the numbers of the new ones, and of the oldest ones
    /// that had to make room.
    pub fn change(&mut self, new: &[NewRow<'_>], gone: &[i64]) -> rusqlite::Result<(Vec<i64>, Vec<SpooledRow>)> {
        let change = self.db.transaction()?;
        let (mut ids, mut dropped) = (Vec::with_capacity(new.len()), Vec::new());
        {
            let mut delete = change.prepare_cached("DELETE FROM requests WHERE id = ?1")?;
            for id in gone {
                delete.execute([id])?;
            }
            let mut insert = change.prepare_cached(
                "INSERT INTO requests (signal, encoding, batch, calls, records, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            let mut oldest = change
                .prepare_cached("SELECT id, signal, batch, calls FROM requests WHERE id < ?1 ORDER BY id LIMIT 1")?;
            for entry in new {
                let body = zstd::bulk::compress(entry.body, 1).map_err(failed)?;
                // Before it comes, so that the file never has more pages than it may.
                let needed = body.len() as u64 / self.page + AROUND;
                let first_new = ids.first().copied().unwrap_or(i64::MAX);
                while used_pages(&change)? + needed > self.most_pages {
                    let Some((found, number)) = oldest.query_row([first_new], found).optional()? else { break };
                    delete.execute([found.id])?;
                    // One that was set aside is nobody's any more.
                    dropped.extend((number >= 0).then_some(found));
                }
                let NewRow { signal, encoding, batch, calls, records, .. } = *entry;
                insert.execute(params![
                    signal as i64,
                    encoding as i64,
                    batch.cast_signed(),
                    calls.cast_signed(),
                    records.cast_signed(),
                    body
                ])?;
                ids.push(change.last_insert_rowid());
            }
        }
        change.commit()?;
        Ok((ids, dropped))
    }

    /// The oldest request of a signal after `id`.
    pub fn after(&self, signal: Signal, id: i64) -> Result<Option<Row>, ReadError> {
        let mut query = self.db.prepare_cached(
            "SELECT id, signal, batch, calls, encoding, records, body FROM requests WHERE signal = ?1 AND id > ?2 \
             ORDER BY id LIMIT 1",
        )?;
        let read = query.query_row(params![signal as i64, id], |row| {
            let (found, _) = found(row)?;
            let encoding = match row.get::<_, i64>(4)? == Encoding::Json as i64 {
                true => Encoding::Json,
                false => Encoding::Protobuf,
            };
            let records = row.get::<_, i64>(5)?.cast_unsigned();
            let body = row.get_ref(6)?.as_blob().ok().and_then(decompress);
            Ok((found, encoding, records, body))
        });
        match read.optional()? {
            None => Ok(None),
            Some((found, _, _, None)) => Err(ReadError::Row(found)),
            Some((SpooledRow { id, batch, calls, .. }, encoding, records, Some(body))) => {
                Ok(Some(Row { id, encoding, batch, calls, records, body }))
            }
        }
    }

    /// Puts another body and number of records in a request's place.
    pub fn replace(&self, id: i64, records: u64, body: &[u8]) -> rusqlite::Result<()> {
        let body = zstd::bulk::compress(body, 1).map_err(failed)?;
        self.db.prepare_cached("UPDATE requests SET records = ?2, body = ?3 WHERE id = ?1")?.execute(params![
            id,
            records.cast_signed(),
            body
        ])?;
        Ok(())
    }

    /// The calls of a batch are counted: what is left of it carries none any more.
    pub fn uncount(&self, batch: u64) -> rusqlite::Result<()> {
        self.db
            .prepare_cached("UPDATE requests SET calls = 0 WHERE batch = ?1 AND calls > 0")?
            .execute([batch.cast_signed()])?;
        Ok(())
    }

    /// From now on nothing can be written, as on a full disk.
    #[cfg(test)]
    pub fn refuse_writes(&self) {
        self.db.pragma_update(None, "query_only", "ON").unwrap();
    }

    /// Spoils the body of a request.
    #[cfg(test)]
    pub fn spoil(&self, id: i64) {
        self.db.execute("UPDATE requests SET body = x'00ff' WHERE id = ?1", [id]).unwrap();
    }

    /// Gives what is free back to the file system.
    pub fn shrink(&self) -> rusqlite::Result<()> {
        // A step frees a page: all of them are taken.
        let mut vacuum = self.db.prepare("PRAGMA incremental_vacuum")?;
        let mut steps = vacuum.query([])?;
        while steps.next()?.is_some() {}
        self.db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}

/// A request's own columns, and the number of its signal.
fn found(row: &rusqlite::Row<'_>) -> rusqlite::Result<(SpooledRow, i64)> {
    let number = row.get::<_, i64>(1)?;
    let signal = Signal::ALL[number.unsigned_abs() as usize % Signal::ALL.len()];
    let unsigned = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
    Ok((SpooledRow { id: row.get(0)?, signal, batch: unsigned(2)?, calls: unsigned(3)? }, number))
}

/// A request is below 4 MiB; what says that it is larger by far is damaged.
fn decompress(body: &[u8]) -> Option<Vec<u8>> {
    let mut request = Vec::new();
    let mut decoder = zstd::stream::read::Decoder::new(body).ok()?.take(MOST_BODY);
    decoder.read_to_end(&mut request).ok()?;
    ((request.len() as u64) < MOST_BODY).then_some(request)
}

fn create(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(&format!(
        "BEGIN;
         CREATE TABLE requests (
             id INTEGER PRIMARY KEY AUTOINCREMENT,
             signal INTEGER NOT NULL,
             encoding INTEGER NOT NULL,
             batch INTEGER NOT NULL,
             calls INTEGER NOT NULL,
             records INTEGER NOT NULL,
             body BLOB NOT NULL
         ) STRICT;
         CREATE INDEX by_signal ON requests (signal, id);
         CREATE INDEX by_batch ON requests (batch);
         PRAGMA application_id = {APPLICATION};
         PRAGMA user_version = {FORMAT};
         COMMIT"
    ))
}

fn used_pages(db: &Connection) -> rusqlite::Result<u64> {
    let count = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map(i64::unsigned_abs);
    Ok(count("page_count")? - count("freelist_count")?)
}

/// Moves a damaged file and its log out of the way.
fn put_aside(path: &Path) -> Result<PathBuf, Error> {
    remove_oldest_aside(path);
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
    let aside = path.with_extension(format!("sqlite.damaged-{now}"));
    let moved = fs::rename(path, &aside).and_then(|()| match fs::remove_file(path.with_extension("sqlite-wal")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    });
    moved.map(|()| aside).map_err(|error| {
        Error::cannot_run(format!("--spool: it is damaged and can't be put aside: {error}"), "move it away by hand")
    })
}

/// Makes room for another one: a disk that damages files must not fill with them.
fn remove_oldest_aside(path: &Path) {
    let is_aside = |name: &str| name.starts_with(FILE) && name.contains(".damaged-");
    let entries = path.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let mut aside: Vec<PathBuf> =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(is_aside)).map(|entry| entry.path()).collect();
    aside.sort();
    for old in aside.iter().rev().skip(ASIDE - 1) {
        // One more than there should be does no harm.
        let _ = fs::remove_file(old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("mqspan-spool-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }

        fn open(&self) -> Result<Store, Error> {
            Store::open(&self.0, LEAST, false)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn entry(batch: u64, body: &[u8]) -> NewRow<'_> {
        NewRow { signal: Signal::Traces, encoding: Encoding::Json, batch, calls: 1, records: 1, body }
    }

    /// Number, batch and calls of the spans that are in it, the oldest first.
    fn left(store: &Store) -> Vec<(i64, u64, u64)> {
        let mut left: Vec<(i64, u64, u64)> = Vec::new();
        while let Some(row) = store.after(Signal::Traces, left.last().map_or(0, |(id, ..)| *id)).unwrap() {
            left.push((row.id, row.batch, row.calls));
        }
        left
    }

    /// Prevents requests from coming back changed, out of order, or after they were struck off, also in the next run;
    /// and two processes from using one spool.
    #[test]
    fn kept_in_order_by_one_at_a_time() {
        let folder = Folder::new("order");
        let mut store = folder.open().unwrap();
        let (ids, dropped) = store.change(&[entry(1, b"one"), entry(2, b"two"), entry(2, b"three")], &[]).unwrap();
        assert_eq!((ids.len(), dropped.len()), (3, 0));
        store.change(&[], &ids[..1]).unwrap();
        assert!(folder.open().unwrap_err().message.contains("another mqspan uses it"));
        store.uncount(2).unwrap();
        drop(store);

        let store = folder.open().unwrap();
        assert_eq!(left(&store), [(ids[1], 2, 0), (ids[2], 2, 0)]);
        let second = store.after(Signal::Traces, 0).unwrap().unwrap();
        assert_eq!((second.id, second.encoding, &*second.body), (ids[1], Encoding::Json, &b"two"[..]));
        assert_eq!(store.after(Signal::Traces, second.id).unwrap().unwrap().body, b"three");
        assert!(store.after(Signal::Logs, 0).unwrap().is_none());
    }

    /// Prevents the file from growing beyond its bound, and the newest from being dropped for the oldest.
    #[test]
    fn the_oldest_makes_room() {
        let folder = Folder::new("bound");
        let mut store = folder.open().unwrap();
        // Random bytes do not compress.
        let body: Vec<u8> = (0..1 << 20).map(|_| rand::random()).collect();
        let (mut kept, mut dropped) = (Vec::new(), Vec::new());
        for batch in 0..12 {
            let (new, gone) = store.change(&[entry(batch, &body)], &[]).unwrap();
            kept.extend(new);
            dropped.extend(gone);
        }
        assert!(dropped.iter().all(|found: &SpooledRow| (found.signal, found.calls) == (Signal::Traces, 1)));
        assert_eq!(dropped.iter().map(|found| found.id).collect::<Vec<_>>(), kept[..dropped.len()]);
        assert_eq!(left(&store).iter().map(|(id, ..)| *id).collect::<Vec<_>>(), kept[dropped.len()..]);
        let size: u64 = fs::read_dir(&folder.0).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert!(size <= LEAST + (1 << 20), "{size}");
        assert!((2..=4).contains(&(kept.len() - dropped.len())), "{} kept", kept.len() - dropped.len());
        store.change(&[], &kept).unwrap();
        store.shrink().unwrap();
        let size = fs::metadata(folder.0.join(FILE)).unwrap().len();
        assert!(size < 1 << 20, "{size}");
    }

    /// Prevents a file that is damaged, another program's, or of another version from being trusted or overwritten.
    #[test]
    fn checked_when_it_is_opened() {
        let folder = Folder::new("check");
        let mut store = folder.open().unwrap();
        store.change(&[entry(1, &[7; 100_000])], &[]).unwrap();
        store.shrink().unwrap();
        store.db.pragma_update(None, "user_version", FORMAT + 1).unwrap();
        drop(store);
        assert!(folder.open().unwrap_err().message.contains("another version"));
        let path = folder.0.join(FILE);
        let db = Connection::open(&path).unwrap();
        db.pragma_update(None, "user_version", FORMAT).unwrap();
        drop(db);

        let mut bytes = fs::read(&path).unwrap();
        let (third, end) = (2 * 4096, bytes.len());
        bytes[third..end.min(third + 8192)].fill(0xff);
        fs::write(&path, bytes).unwrap();
        let damaged = || {
            let names = fs::read_dir(&folder.0).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.contains("damaged")).count()
        };
        assert!(left(&folder.open().unwrap()).is_empty());
        assert_eq!(damaged(), 1);
        for other in 0..ASIDE {
            fs::write(path.with_extension(format!("sqlite.damaged-{other}")), b"x").unwrap();
        }
        fs::write(&path, [b'x'; 5000]).unwrap();
        assert!(left(&folder.open().unwrap()).is_empty());
        assert_eq!(damaged(), ASIDE, "a disk that damages files must not fill with them");
        fs::remove_file(&path).unwrap();
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE other (x)").unwrap();
        assert!(folder.open().unwrap_err().message.contains("another program's"));
        assert!(Store::open(&folder.0, LEAST - 1, false).unwrap_err().message.contains("too small"));
    }

    /// Prevents one request that can't be read from blocking those behind it, and its calls from being forgotten.
    #[test]
    fn requests_that_cannot_be_read() {
        let folder = Folder::new("rows");
        let mut store = folder.open().unwrap();
        let (ids, _) = store.change(&[entry(1, b"one"), entry(2, b"two")], &[]).unwrap();
        store.db.execute("UPDATE requests SET body = x'00ff' WHERE id = ?1", [ids[0]]).unwrap();
        let found = SpooledRow { id: ids[0], signal: Signal::Traces, batch: 1, calls: 1 };
        assert!(matches!(store.after(Signal::Traces, 0), Err(ReadError::Row(row)) if row == found));
        store.set_aside(ids[0]).unwrap();
        assert_eq!(store.after(Signal::Traces, 0).unwrap().unwrap().id, ids[1]);
        assert_eq!((store.count(Signal::Traces).unwrap(), store.calls().unwrap()), (1, 1));
        // Much from little: it says that it is larger than any request.
        let bomb = zstd::bulk::compress(&vec![0; MOST_BODY as usize + 1], 1).unwrap();
        store.db.execute("UPDATE requests SET body = ?2 WHERE id = ?1", params![ids[1], bomb]).unwrap();
        assert!(matches!(store.after(Signal::Traces, 0), Err(ReadError::Row(_))));
    }

    /// Prevents the calls of a batch from being counted with each of its requests, or with none.
    #[test]
    fn calls_of_a_batch() {
        let folder = Folder::new("calls");
        let mut store = folder.open().unwrap();
        let (ids, _) = store.change(&[entry(1, b"spans"), entry(1, b"logs"), entry(2, b"two")], &[]).unwrap();
        assert_eq!(store.calls().unwrap(), 2);
        store.take_over_calls(1, ids[0], 1).unwrap();
        assert_eq!(left(&store), [(ids[0], 1, 1), (ids[1], 1, 0), (ids[2], 2, 1)]);
        assert!(store.move_calls_to_another(1, ids[0], 1).unwrap());
        store.change(&[], &ids[..1]).unwrap();
        assert_eq!((store.calls().unwrap(), left(&store)[0]), (2, (ids[1], 1, 1)));
        assert!(!store.move_calls_to_another(1, ids[1], 1).unwrap(), "there is no other");
    }
}
