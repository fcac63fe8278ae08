package rescue

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/dirstore"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
	"github.com/holdfast-backup/holdfast/pools/parity"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

// A Place says where a pool is. Either Paths or Buckets is given.
type Place struct {
	Paths   []string         // the folder of a dedup pool, the paths of a standard pool, or the folders of a stripe, in any order
	Buckets []s3store.Config // a bucket, or the buckets of a stripe
	Secret  seal.Secret      // of an encrypted pool
}

// A Pool is open for reading. Not safe for concurrent use.
type Pool struct {
	kind    string
	id      holdfast.PoolID
	engine  engine
	closers []func() error
}

// An engine reads one format of pool.
type engine interface {
	// sets yields the manifests of all sets; one that cannot be read is an error, and the listing goes on.
	sets(ctx context.Context) iter.Seq2[holdfast.Manifest, error]
	// pieces returns a disk of a set, given by number, as pieces of chunks.
	disk(ctx context.Context, id holdfast.SetID, disk int) (*plan, error)
}

// Kind says what kind of pool it is.
func (p *Pool) Kind() string { return p.kind }

// ID returns the pool's id.
func (p *Pool) ID() holdfast.PoolID { return p.id }

// Sets yields the manifests of all sets of the pool, in no order; one that cannot be read is yielded as an error, and the listing goes on.
func (p *Pool) Sets(ctx context.Context) iter.Seq2[holdfast.Manifest, error] {
	return p.engine.sets(ctx)
}

// Close ends the use of the pool.
func (p *Pool) Close() error {
	var errs []error
	for i := len(p.closers) - 1; i >= 0; i-- {
		errs = append(errs, p.closers[i]())
	}
	return errors.Join(errs...)
}

// A source is one folder or bucket. Its store is nil if it is not there.
type source struct {
	name  string
	store blob.Store
	files fsys.FS // of a folder; nil for a bucket
	err   error   // why there is no store
}

// Open finds out what is at the place and opens it. Folders, and one of several buckets, that are not there count as lost:
// what can be read without them is read.
func Open(ctx context.Context, at Place) (*Pool, error) {
	const op = "open pool"
	p := &Pool{}
	var from []source
	for _, dir := range at.Paths {
		from = append(from, openFolder(dir))
	}
	for _, c := range at.Buckets {
		s, err := s3store.Open(ctx, c)
		if err != nil && len(at.Buckets) == 1 {
			return nil, errors.Join(err, p.Close())
		}
		if err != nil { // of a stripe, as a folder that is not there
			from = append(from, source{name: c.Bucket, err: err})
			continue
		}
		p.closers = append(p.closers, s.Close)
		from = append(from, source{name: c.Bucket, store: blob.Retry(s, blob.DefaultPolicy, c.Clock)})
	}
	if len(from) == 0 {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "no folder and no bucket is named").Advise("say where the pool is: --path DIR, or --endpoint URL --bucket NAME")
	}
	if err := p.open(ctx, from, at.Secret); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func openFolder(dir string) source {
	x := source{name: dir}
	if x.files, x.err = fsys.NewOS(dir); x.err != nil {
		x.err = fsys.Classify("open folder", x.err)
		return x
	}
	s, err := dirstore.Open(x.files, dirstore.Options{ReadOnly: true})
	if err != nil {
		x.err = err
		return x
	}
	x.store = s
	return x
}

// Names of objects by which a place is known.
const (
	stripeLabelA = ".stripe/member-a"
	stripeLabelB = ".stripe/member-b"
)

// open looks for a stripe, then for a standard pool, then for a dedup pool.
func (p *Pool) open(ctx context.Context, from []source, secret seal.Secret) error {
	var lost []error
	striped, plain, found := false, false, 0
	for _, x := range from {
		if x.store == nil {
			lost = append(lost, fmt.Errorf("%s: %w", x.name, x.err))
			continue
		}
		found++
		striped = striped || has(ctx, x.store, stripeLabelA) || has(ctx, x.store, stripeLabelB)
		plain = plain || has(ctx, x.store, standardRecord) || has(ctx, x.store, standardCopy)
	}
	if found == 0 {
		return holdfast.Errorf(holdfast.Offline, "open pool", "nothing is there: %w", errors.Join(lost...)).Advise("look whether the disks are mounted, and whether the names are right")
	}
	switch {
	case striped:
		stores, names := make([]blob.Store, len(from)), make([]string, len(from))
		for i, x := range from {
			stores[i], names[i] = x.store, x.name
		}
		s, err := parity.Open(ctx, stores, parity.Options{Names: names, ReadOnly: true})
		if err != nil {
			return err
		}
		return p.openDedup(ctx, s, storeNames, secret)
	case plain:
		return p.openStandard(ctx, from)
	case len(from) > 1:
		return holdfast.Errorf(holdfast.Invalid, "open pool", "several folders, and neither a stripe nor a standard pool is in them").Advise("name the folders of one pool")
	case from[0].files != nil:
		return p.openDedup(ctx, folderStore{from[0].store, from[0].files}, folderNames, secret)
	}
	return p.openDedup(ctx, from[0].store, storeNames, secret)
}

func has(ctx context.Context, s blob.Store, name string) bool {
	ok, err := s.Exists(ctx, name)
	return err == nil && ok
}

// A folderStore also reads the few files of a folder whose names are no objects' names.
type folderStore struct {
	blob.Store
	files fsys.FS
}

// readSmall reads a small object, or in a folder a file of any name.
func readSmall(ctx context.Context, s blob.Store, name string, limit int64) ([]byte, error) {
	if f, ok := s.(folderStore); ok && blob.CheckName(name) != nil {
		b, err := fsys.ReadFile(f.files, name, limit)
		return b, fsys.Classify("read "+name, err)
	}
	return blob.ReadAll(ctx, s, name, limit)
}
