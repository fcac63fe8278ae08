package rescue

import (
	"context"
	"fmt"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/container"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

const (
	openBooks   = 32 // containers that are open at a time
	cachedPlain = 8  // decoded groups that are kept: nodes of a recipe lie close together
)

// A library is the containers of a pool.
type library struct {
	files  []file
	pool   holdfast.PoolID
	domain holdfast.Domain
	ring   *seal.Ring // nil: nothing is encrypted

	books map[int]*book
	order []int // of books, the oldest first
	dec   *chunk.Decoder
	hash  *holdfast.Hasher
	plain map[groupAt][]byte
	last  []groupAt // of plain, the oldest first
}

// A file is where a container lies.
type file struct {
	store blob.Store
	name  string // of the object
	label string // for people
	gone  error  // why it is not there, if store is nil
}

// A book is an open container.
type book struct {
	r      blob.Reader
	h      container.Header
	f      *container.Footer
	rescue error // what was wrong with the footer, if records were read one by one
}

// groupAt is a compression group of a library.
type groupAt struct {
	file  int
	group uint32
}

func newLibrary(pool holdfast.PoolID, domain holdfast.Domain, ring *seal.Ring) *library {
	return &library{pool: pool, domain: domain, ring: ring, books: map[int]*book{}, dec: chunk.NewDecoder(), hash: domain.Hasher(), plain: map[groupAt][]byte{}}
}

// close closes all open containers.
func (l *library) close() error {
	for _, b := range l.books {
		_ = b.r.Close() // only read
	}
	clear(l.books)
	l.order = nil
	return nil
}

// open returns a container. Where footer or trailer are damaged, its records are read one by one up to the damage.
func (l *library) open(ctx context.Context, i int) (*book, error) {
	if b := l.books[i]; b != nil {
		return b, nil
	}
	f := l.files[i]
	if f.store == nil {
		return nil, f.gone
	}
	r, err := f.store.Open(ctx, f.name)
	if err != nil {
		return nil, err
	}
	b := &book{r: r}
	if err := b.load(l); err != nil {
		_ = r.Close() // only read
		return nil, err
	}
	if len(l.order) >= openBooks {
		_ = l.books[l.order[0]].r.Close() // only read
		delete(l.books, l.order[0])
		l.order = l.order[1:]
	}
	l.books[i], l.order = b, append(l.order, i)
	return b, nil
}

func (b *book) load(l *library) error {
	var err error
	b.h, b.f, err = container.Load(b.r, b.r.Size())
	if holdfast.KindOf(err) == holdfast.Corrupt {
		b.rescue = err
		b.h, b.f, err = container.Scan(b.r, b.r.Size())
	}
	if err != nil {
		return err
	}
	if b.h.Pool != l.pool {
		return holdfast.Errorf(holdfast.Corrupt, "open container", "it is of pool %s", b.h.Pool)
	}
	if b.h.Sealed() != (l.ring != nil) {
		return holdfast.Errorf(holdfast.Corrupt, "open container", "whether it is encrypted is not as the pool is")
	}
	if l.ring != nil {
		b.f.Cipher, err = l.ring.Cipher(b.h.KeyID, b.h.Salt, b.h.ID)
	}
	return err
}

// read returns the decoded bytes of a group in which the chunks that used names are checked against their digests. The bytes are valid until the next read.
func (l *library) read(ctx context.Context, at groupAt, used func(i int) bool) ([]byte, error) {
	b, err := l.open(ctx, at.file)
	if err != nil {
		return nil, err
	}
	g, err := container.ReadGroup(b.r, b.f, at.group, nil)
	if err != nil {
		return nil, err
	}
	return l.dec.Open(l.hash, &g, make([]byte, 0, g.PlainLen()), used)
}

// chunk returns one chunk, checked. It keeps the groups read last: it is for nodes, which lie close together.
func (l *library) chunk(ctx context.Context, at chunkAt) ([]byte, error) {
	b, err := l.open(ctx, int(at.file))
	if err != nil {
		return nil, err
	}
	if int(at.ordinal) >= len(b.f.Chunks) {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read chunk", "no chunk %d", at.ordinal)
	}
	c := b.f.Chunks[at.ordinal]
	key := groupAt{int(at.file), c.Group}
	plain, ok := l.plain[key]
	if !ok {
		if plain, err = l.read(ctx, key, func(int) bool { return false }); err != nil {
			return nil, err
		}
		if len(l.last) >= cachedPlain {
			delete(l.plain, l.last[0])
			l.last = l.last[1:]
		}
		l.plain[key], l.last = plain, append(l.last, key)
	}
	if int(c.At)+int(c.Len) > len(plain) {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read chunk", "chunk %d ends outside its group", at.ordinal)
	}
	p := plain[c.At : c.At+c.Len]
	if l.hash.Sum(p) != c.Digest {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read chunk", "the digest of chunk %d differs", at.ordinal)
	}
	return p, nil
}

// chunkAt is where a chunk lies.
type chunkAt struct {
	file    uint32
	ordinal uint32
}

// each loads every container's footer and calls do with it. What cannot be loaded is returned as warnings; do's error ends it.
func (l *library) each(ctx context.Context, do func(file int, b *book)) (warnings []error, err error) {
	for i := range l.files {
		if ctx.Err() != nil {
			return warnings, blob.Cancelled(ctx, "read containers")
		}
		b, err := l.open(ctx, i)
		if err != nil {
			warnings = append(warnings, fmt.Errorf("%s: %w", l.files[i].label, err))
			continue
		}
		if b.rescue != nil {
			warnings = append(warnings, fmt.Errorf("%s: %w; its records were read one by one", l.files[i].label, b.rescue))
		}
		do(i, b)
	}
	return warnings, nil
}
