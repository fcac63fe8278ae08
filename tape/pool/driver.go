// Package pool keeps backup sets on tapes: the driver of kind "tape". A set is containers and a record on one media set, which stands alone;
// docs/formats/tape-pool.md says what lies there, and tape/hft how.
//
// It owns the tapes of its media sets, and in Env.StateDir a book of them, the records of its sets, and a spool. What comes is spooled to files first and goes to
// tape in long runs, so that a drive streams; a set counts once its record lies behind a synchronous filemark and the book says so. On a crash everything that Commit
// has returned is on tape and in the book; what was under way is cut off when the tape is appended to. Without the book, Rebuild reads it from the cartridges
// in any order, but for deletions that no tape has been told of yet.
//
// It is the truth of label and medium that counts, never a bar code: a cartridge that is not the one that is due is not written to.
//
// It imports the packages of tape below it, pools and the containers of package pools/container. It must not import the catalog.
package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/dedup"
	"github.com/holdfast-backup/holdfast/tape/hft"
	"github.com/holdfast-backup/holdfast/tape/library"
	"github.com/holdfast-backup/holdfast/tape/media"
)

// Kind is the driver's kind.
const Kind = "tape"

// Allocations: when a new media set begins.
const (
	Continue = "continue" // when the one there is is closed by hand or exported
	Always   = "always"   // with every backup set
	Daily    = "daily"    // with the first backup set of a day, week or month, in UTC
	Weekly   = "weekly"
	Monthly  = "monthly"
)

// Config is the driver's configuration.
type Config struct {
	Library    string `json:"library"`              // its address
	Name       string `json:"name,omitempty"`       // on labels, for people who find a cartridge
	Chunking   string `json:"chunking,omitempty"`   // as holdfast.ParseChunking reads it; only making a pool looks at it
	Barcodes   string `json:"barcodes,omitempty"`   // the pool takes only cartridges whose bar codes begin so
	Admitted   bool   `json:"admitted,omitempty"`   // the pool takes only blank cartridges that it was given by name
	Allocation string `json:"allocation,omitempty"` // empty: weekly
	Retain     string `json:"retain,omitempty"`     // how long a media set is kept from when it is closed: 720h, 30d; empty: it may be recycled as soon as no set needs it
	Spool      int64  `json:"spool,omitempty"`      // bytes that are collected on disk and then written and committed in one go; 0: 64 GiB
	Block      int    `json:"block,omitempty"`      // bytes of a block on tape; 0: 512 KiB
	dedup.Encryption
}

const (
	defaultSpool = 64 << 30
	maxKeep      = 100 * 365 * 24 * time.Hour
)

func readConfig(raw json.RawMessage) (Config, time.Duration, error) {
	const op = "read pool config"
	var c Config
	if err := pools.DecodeConfig(raw, &c); err != nil {
		return c, 0, err
	}
	if _, err := library.Parse(c.Library); err != nil {
		return c, 0, err
	}
	switch c.Allocation {
	case "":
		c.Allocation = Weekly
	case Continue, Always, Daily, Weekly, Monthly:
	default:
		return c, 0, holdfast.Errorf(holdfast.Invalid, op, "unknown allocation %q", c.Allocation).Advise("use continue, always, daily, weekly or monthly")
	}
	if c.Spool == 0 {
		c.Spool = defaultSpool
	}
	if c.Block == 0 {
		c.Block = hft.DefaultBlock
	}
	if c.Spool < 1<<20 || c.Block < hft.MinBlock || c.Block > hft.MaxBlock {
		return c, 0, holdfast.Errorf(holdfast.Invalid, op, "a spool of %d bytes or blocks of %d are out of bounds", c.Spool, c.Block).Advise("a spool has 1 MiB or more, a block %d to %d bytes", hft.MinBlock, hft.MaxBlock)
	}
	keep, err := duration(c.Retain)
	return c, keep, err
}

// duration reads 30d as well as what Go reads.
func duration(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if n, ok := strings.CutSuffix(s, "d"); ok && err != nil {
		if d, err = time.ParseDuration(n + "h"); err == nil && d < maxKeep {
			d *= 24
		}
	}
	if err != nil || d < 0 || d > maxKeep {
		return 0, holdfast.Errorf(holdfast.Invalid, "read pool config", "%q is no time to keep a media set", s).Advise("write 30d or 720h")
	}
	return d, nil
}

func (c *Config) wants(barcode string) bool { return strings.HasPrefix(barcode, c.Barcodes) }

// due reports whether a media set that was begun at a time is to be followed by another one now.
func (c *Config) due(begun, now time.Time) bool {
	begun, now = begun.UTC(), now.UTC()
	y, m, d := begun.Date()
	ny, nm, nd := now.Date()
	switch c.Allocation {
	case Always:
		return true
	case Daily:
		return y != ny || m != nm || d != nd
	case Monthly:
		return y != ny || m != nm
	case Weekly:
		y, w := begun.ISOWeek()
		ny, nw := now.ISOWeek()
		return y != ny || w != nw
	}
	return false
}

// A superblock is what the pool is. A copy of it, without the list of cartridges, is the first object of each media set.
type superblock struct {
	Format   int               `json:"format"`
	ID       holdfast.PoolID   `json:"id"`
	Created  time.Time         `json:"created"`
	Chunking holdfast.Chunking `json:"chunking"`
	Domain   []byte            `json:"domain,omitempty"`  // key of the digests' domain; of an encrypted pool it is in the keyring
	Keyring  []byte            `json:"keyring,omitempty"` // of an encrypted pool
}

const (
	superName = "pool.json"
	lockName  = "lock"
	maxSuper  = 1 << 20
)

// Driver returns the driver. Pools share open libraries by the keeper.
func Driver(keeper *library.Keeper) pools.Driver {
	return pools.Driver{
		Kind: Kind,
		Create: func(ctx context.Context, env pools.Env, id holdfast.PoolID, config json.RawMessage) error {
			c, _, err := readConfig(config)
			if err != nil {
				return err
			}
			f, err := state(env, true)
			if err != nil {
				return err
			}
			lib, end, err := keeper.Use(ctx, c.Library, options(env))
			if err != nil {
				return err
			}
			if lib.Changer() == nil {
				err = noRobot()
			}
			return errors.Join(err, end(ctx), onlyIf(err == nil, func() error { return create(ctx, env, f, id, c) }))
		},
		Open: func(ctx context.Context, env pools.Env, id holdfast.PoolID, config json.RawMessage) (pools.Pool, error) {
			p, err := openPool(ctx, keeper, env, id, config)
			if err != nil {
				return nil, err // not p: a nil *Pool is not a nil pools.Pool
			}
			return p, nil
		},
		Identify: func(ctx context.Context, env pools.Env, config json.RawMessage) (holdfast.PoolID, error) {
			return identify(ctx, keeper, env, config)
		},
	}
}

// identify reads the pool's id from its state, or from the cartridges in the library where there is none: the pools found must be one.
func identify(ctx context.Context, keeper *library.Keeper, env pools.Env, config json.RawMessage) (id holdfast.PoolID, err error) {
	c, _, err := readConfig(config)
	if err != nil {
		return id, err
	}
	if env.StateDir != "" {
		if f, err := state(env, false); err == nil {
			if head, err := readSuper(f); err == nil || holdfast.KindOf(err) != holdfast.NotExist {
				return head.ID, err
			}
		}
	}
	lib, end, err := keeper.Use(ctx, c.Library, options(env))
	if err != nil {
		return id, err
	}
	if lib.Changer() == nil {
		return id, errors.Join(noRobot(), end(ctx))
	}
	id, err = search(ctx, env, lib, c)
	return id, errors.Join(err, end(ctx))
}

func onlyIf(ok bool, do func() error) error {
	if !ok {
		return nil
	}
	return do()
}

func noRobot() error {
	return holdfast.Errorf(holdfast.Unsupported, "open tape pool", "there is no changer behind the address").Advise("a tape pool needs a library with a robot")
}

func options(env pools.Env) library.Options {
	return library.Options{Secrets: env.Secrets, Clock: env.Clock}
}

// logger turns remarks about drives and cartridges into events.
func logger(env pools.Env) func(string, ...any) {
	return func(format string, args ...any) {
		env.Listener.Emit(holdfast.Event{Type: holdfast.EventTape, Severity: holdfast.Warning, Text: fmt.Sprintf(format, args...)})
	}
}

// state returns the folder of the pool's state.
func state(env pools.Env, make bool) (fsys.FS, error) {
	const op = "open tape pool"
	if env.StateDir == "" {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "a tape pool needs a folder for its state")
	}
	open := fsys.NewOS
	if make {
		open = fsys.CreateOS
	}
	f, err := open(env.StateDir)
	return f, fsys.Classify(op, err)
}

func readSuper(f fsys.FS) (superblock, error) {
	const op = "open tape pool"
	var s superblock
	b, err := fsys.ReadFile(f, superName, maxSuper)
	if err != nil {
		err = fsys.Classify(op, err)
		if holdfast.KindOf(err) == holdfast.NotExist {
			return s, holdfast.Errorf(holdfast.NotExist, op, "the pool's state is not on this machine").Advise("read the catalog from the cartridges again")
		}
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, holdfast.Errorf(holdfast.Corrupt, op, "%w", err).Advise("read the catalog from the cartridges again")
	}
	return s, s.check()
}

func (s *superblock) check() error {
	const op = "open tape pool"
	if s.Format != 1 {
		return holdfast.Errorf(holdfast.Unsupported, op, "format %d", s.Format).Advise("use a newer version of Holdfast")
	}
	if s.ID.IsZero() || (len(s.Domain) != 32) == (len(s.Keyring) == 0) {
		return holdfast.Errorf(holdfast.Corrupt, op, "the pool's description is not whole").Advise("read the catalog from the cartridges again")
	}
	if len(s.Keyring) > 0 {
		return nil // the chunking's seed is in it
	}
	return s.Chunking.Check()
}

// openPool opens a pool with its library. Where its state was lost it is read from the cartridges first, which takes a mount of each.
func openPool(ctx context.Context, keeper *library.Keeper, env pools.Env, id holdfast.PoolID, config json.RawMessage) (*Pool, error) {
	c, keep, err := readConfig(config)
	if err != nil {
		return nil, err
	}
	f, err := state(env, true)
	if err != nil {
		return nil, err
	}
	lib, end, err := keeper.Use(ctx, c.Library, options(env))
	if err != nil {
		return nil, err
	}
	if _, err := readSuper(f); holdfast.KindOf(err) == holdfast.NotExist && err != nil && lib.Changer() != nil {
		if _, err := rebuildOn(ctx, env, f, id, c, keep, lib); err != nil {
			return nil, errors.Join(err, end(ctx))
		}
	}
	p, err := openOn(ctx, env, f, id, c, keep, lib, end)
	if err != nil {
		return nil, errors.Join(err, end(ctx))
	}
	return p, nil
}

// openOn opens a pool whose state lies in f. The library is the pool's to give back once it is open.
func openOn(ctx context.Context, env pools.Env, f fsys.FS, id holdfast.PoolID, c Config, keep time.Duration, lib *library.Library, end func(context.Context) error) (_ *Pool, err error) {
	if lib.Changer() == nil {
		return nil, noRobot()
	}
	lock, err := f.Lock(lockName)
	if err != nil {
		return nil, fsys.Classify("open tape pool", err)
	}
	defer func() {
		if err != nil {
			_ = lock.Close() // the first error is the one to tell
		}
	}()
	p := bare(env, f, id, c, keep, lib)
	p.lock, p.endLib = lock, end
	if p.head, err = readSuper(f); err != nil {
		return nil, err
	}
	if p.head.ID != id {
		return nil, holdfast.Errorf(holdfast.Invalid, "open tape pool", "the pool is %s, not %s", p.head.ID, id)
	}
	if err := p.unlock(env); err != nil {
		return nil, err
	}
	if p.book, err = media.Load(f, id); err != nil {
		return nil, err
	}
	for _, s := range p.book.Sets {
		if err := p.loadObjects(s.ID); err != nil {
			return nil, err
		}
	}
	return p, p.sweep()
}

// bare returns a pool that knows its library and nothing else.
func bare(env pools.Env, f fsys.FS, id holdfast.PoolID, c Config, keep time.Duration, lib *library.Library) *Pool {
	p := &Pool{id: id, name: c.Name, config: c, keep: keep, fs: f, clk: env.Clock, log: logger(env), book: &media.Book{Pool: id}, writing: make(chan struct{}, 1),
		objects: map[holdfast.ID][]hft.Entry{}, keys: map[holdfast.ID]*hft.Key{}, open: map[holdfast.SetID]bool{}, pins: map[holdfast.ID]int{}}
	if p.clk == nil {
		p.clk = clock.System
	}
	p.stations = newStations(lib, p.clk, p.log)
	return p
}

// create makes the state of a new pool.
func create(ctx context.Context, env pools.Env, f fsys.FS, id holdfast.PoolID, c Config) error {
	const op = "create tape pool"
	if err := ctx.Err(); err != nil {
		return holdfast.Errorf(holdfast.KindOf(err), op, "%w", err)
	}
	if _, err := f.Stat(superName); err == nil {
		return holdfast.Errorf(holdfast.Exist, op, "there is a pool already")
	}
	chunking, err := holdfast.ParseChunking(c.Chunking)
	if err != nil {
		return err
	}
	clk := env.Clock
	if clk == nil {
		clk = clock.System
	}
	head, err := newSuper(env, id, c, chunking, clk.Now())
	if err != nil {
		return err
	}
	return writeState(f, head, &media.Book{Pool: id}, nil)
}

// writeState writes everything a pool's state needs; the superblock comes last.
func writeState(f fsys.FS, head superblock, book *media.Book, objects map[holdfast.ID][]hft.Entry) error {
	const op = "write the state of a tape pool"
	for _, dir := range []string{recordDir, objectDir, spoolDir} {
		if err := f.MkdirAll(dir); err != nil {
			return fsys.Classify(op, err)
		}
	}
	for id, list := range objects {
		if err := writeObjects(f, id, list); err != nil {
			return err
		}
	}
	if err := book.Save(f); err != nil {
		return err
	}
	b, err := json.Marshal(head)
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	return fsys.Classify(op, fsys.Replace(f, superName, b))
}
