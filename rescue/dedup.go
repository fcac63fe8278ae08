package rescue

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"iter"
	"path"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/container"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

// docs/formats/recipe.md: the superblock's names in folders, and in buckets and stripes.
var (
	folderNames = [2]string{"HOLDFAST", "HOLDFAST.copy"}
	storeNames  = [2]string{"superblock", "superblock.copy"}
)

const (
	superMagic     = "HFASTSB1"
	maxSuper       = 64 << 10
	incompatSealed = 1
	setsFolder     = "sets"
	contsFolder    = "containers"
	keysFolder     = "keys"
	setMagic       = "HFASTSET"
	setHead        = 64
	maxSetRecord   = setHead + holdfast.MaxDisks*64 + holdfast.MaxManifestBytes + 32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A superblock is what a pool is known by.
type superblock struct {
	Format   int             `json:"format"`
	Kind     string          `json:"kind"`
	Incompat uint32          `json:"incompat"`
	Pool     holdfast.PoolID `json:"pool"`
	Key      []byte          `json:"domain_key"`
}

// A dedupPool reads dedup pools, wherever their objects lie.
type dedupPool struct {
	store  blob.Store
	pool   holdfast.PoolID
	domain holdfast.Domain
	ring   *seal.Ring
	lib    *library
}

// openDedup reads superblock and keyring, and lists the containers.
func (p *Pool) openDedup(ctx context.Context, s blob.Store, names [2]string, secret seal.Secret) error {
	p.closers = append(p.closers, s.Close)
	sb, err := readSuper(ctx, s, names)
	if err != nil {
		return err
	}
	d := &dedupPool{store: s, pool: sb.Pool}
	switch {
	case sb.Incompat&incompatSealed != 0:
		if d.ring, err = openRing(ctx, s, secret); err != nil {
			return err
		}
		if d.ring.Pool() != sb.Pool {
			return holdfast.Errorf(holdfast.Corrupt, "open keyring", "it is of pool %s, not %s", d.ring.Pool(), sb.Pool)
		}
		d.domain = d.ring.Domain()
	case len(sb.Key) != 32:
		return holdfast.Errorf(holdfast.Corrupt, "read superblock", "no key")
	default:
		d.domain.Key = [32]byte(sb.Key)
	}
	objects, err := s.List(ctx, contsFolder)
	if err != nil {
		return err
	}
	d.lib = newLibrary(sb.Pool, d.domain, d.ring)
	for _, n := range objects {
		d.lib.files = append(d.lib.files, file{store: s, name: n, label: n})
	}
	p.closers = append(p.closers, d.lib.close)
	p.kind, p.id, p.engine = sb.Kind, sb.Pool, d
	return nil
}

// readSuper reads either copy of the superblock.
func readSuper(ctx context.Context, s blob.Store, names [2]string) (*superblock, error) {
	var first error
	for _, name := range names {
		b, err := readSmall(ctx, s, name, maxSuper)
		var sb *superblock
		if err == nil {
			if sb, err = parseSuper(b); err == nil {
				return sb, nil
			}
		}
		if first == nil || holdfast.KindOf(first) == holdfast.NotExist {
			first = err
		}
	}
	if holdfast.KindOf(first) == holdfast.NotExist {
		return nil, holdfast.Errorf(holdfast.NotExist, "open pool", "there is no pool here").Advise("name the folder in which HOLDFAST lies, or the bucket and --prefix of the pool")
	}
	return nil, first
}

func parseSuper(b []byte) (*superblock, error) {
	const op = "read superblock"
	n := len(b)
	if n < 16 || string(b[:8]) != superMagic || int64(binary.LittleEndian.Uint32(b[8:])) != int64(n-16) ||
		binary.LittleEndian.Uint32(b[n-4:]) != crc32.Checksum(b[:n-4], castagnoli) {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "length or checksum is wrong")
	}
	var sb superblock
	if err := json.Unmarshal(b[12:n-4], &sb); err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%w", err)
	}
	if sb.Format != 1 || sb.Incompat&^incompatSealed != 0 {
		return nil, holdfast.Errorf(holdfast.Unsupported, op, "format %d with features %#x", sb.Format, sb.Incompat).Advise("use a newer version of this program")
	}
	return &sb, nil
}

// openRing opens the newest keyring of which a copy is whole.
func openRing(ctx context.Context, s blob.Store, secret seal.Secret) (*seal.Ring, error) {
	const op = "open keyring"
	if secret.IsZero() {
		return nil, holdfast.Errorf(holdfast.Permission, op, "the pool is encrypted").
			Advise("name its key with --key-file (a key file, or a file with the key from the recovery sheet), or --passphrase-file")
	}
	names, err := s.List(ctx, keysFolder)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	slices.Reverse(names) // generations are in hexadecimal digits of one length; a copy sorts behind its original
	err = holdfast.Errorf(holdfast.Corrupt, op, "the keyring is missing").Advise("bring a copy of the pool's folder %q back", keysFolder)
	for _, n := range names {
		b, rerr := blob.ReadAll(ctx, s, n, seal.MaxRing)
		if rerr != nil {
			err = rerr
			continue
		}
		locked, perr := seal.Parse(b)
		if perr != nil {
			err = perr
			continue
		}
		return locked.Unlock(secret)
	}
	return nil, err
}

// sets implements engine.
func (d *dedupPool) sets(ctx context.Context) iter.Seq2[holdfast.Manifest, error] {
	return func(yield func(holdfast.Manifest, error) bool) {
		names, err := d.store.List(ctx, setsFolder)
		if err != nil {
			yield(holdfast.Manifest{}, err)
			return
		}
		for _, n := range names {
			if !strings.HasSuffix(n, ".set") {
				continue
			}
			m, _, err := d.record(ctx, n)
			if !yield(m, err) {
				return
			}
		}
	}
}

// record reads a set record and returns the manifest and the roots of the disks' recipes.
func (d *dedupPool) record(ctx context.Context, name string) (m holdfast.Manifest, roots []holdfast.Digest, err error) {
	bad := func(format string, args ...any) (holdfast.Manifest, []holdfast.Digest, error) {
		return holdfast.Manifest{}, nil, holdfast.Errorf(holdfast.Corrupt, "read "+name, format, args...)
	}
	b, err := blob.ReadAll(ctx, d.store, name, maxSetRecord+seal.ObjectOverhead)
	if err == nil && d.ring != nil {
		b, err = d.ring.OpenObject(name, b)
	}
	if err != nil {
		return m, nil, err
	}
	le := binary.LittleEndian
	if len(b) < setHead+32 || string(b[:8]) != setMagic || d.domain.Hasher().Sum(b[:len(b)-32]) != holdfast.Digest(b[len(b)-32:]) {
		return bad("no set record, or its checksum differs")
	}
	if le.Uint16(b[8:]) != 1 || le.Uint16(b[10:]) != setHead || le.Uint32(b[20:]) != 0 {
		return m, nil, holdfast.Errorf(holdfast.Unsupported, "read "+name, "version %d", le.Uint16(b[8:])).Advise("use a newer version of this program")
	}
	disks, length := int64(le.Uint32(b[12:])), int64(le.Uint32(b[16:]))
	if disks > holdfast.MaxDisks || setHead+64*disks+length+32 != int64(len(b)) || holdfast.ID(b[24:40]) != d.pool.ID {
		return bad("%d disks and a manifest of %d bytes in %d bytes, or another pool's", disks, length, len(b))
	}
	if m, err = holdfast.UnmarshalManifest(b[setHead+64*disks : int64(len(b))-32]); err != nil {
		return bad("%w", err)
	}
	if m.ID.ID != holdfast.ID(b[40:56]) || int64(len(m.Disks)) != disks || path.Base(name) != m.ID.String()+".set" {
		return bad("the manifest is of another set")
	}
	for i := range m.Disks {
		e := b[setHead+64*i:]
		if holdfast.ID(e[:16]) != m.Disks[i].ID.ID {
			return bad("disk %d is another one", i)
		}
		roots = append(roots, holdfast.Digest(e[16:48]))
	}
	return m, roots, nil
}

// disk implements engine. Two passes over the footers keep memory small: the first finds the recipe's nodes, the second the chunks that they name.
func (d *dedupPool) disk(ctx context.Context, id holdfast.SetID, disk int) (*plan, error) {
	m, roots, err := d.record(ctx, setsFolder+"/"+id.String()+".set")
	if err != nil {
		return nil, err
	}
	w := &walker{d: d, ctx: ctx, nodes: map[holdfast.Digest][]chunkAt{}, data: map[holdfast.Digest]chunkAt{}, more: map[holdfast.Digest][]chunkAt{}}
	pl := &plan{manifest: m, disk: disk, lib: d.lib, others: func(x holdfast.Digest) []chunkAt { return w.more[x] }}
	if roots[disk].IsZero() {
		pl.pieces = func(func(piece, error) bool) {}
		return pl, nil
	}
	if pl.warnings, err = d.lib.each(ctx, w.findNodes); err != nil {
		return nil, err
	}
	span := rootSpan(m.Disks[disk].Size)
	err = w.walk(roots[disk], span, 0, func(r holdfast.Ref) error {
		w.data[r.Digest] = nowhere
		pl.total += r.Len
		return nil
	})
	if err != nil {
		return nil, w.explain(err, pl.warnings)
	}
	if _, err := d.lib.each(ctx, w.findData); err != nil {
		return nil, err
	}
	pl.pieces = func(yield func(piece, error) bool) {
		stop := errors.New("enough")
		err := w.walk(roots[disk], span, 0, func(r holdfast.Ref) error {
			x := piece{at: w.data[r.Digest], digest: r.Digest, skip: r.Skip, len: uint32(r.Len), off: r.Off}
			if x.at == nowhere {
				x.err = holdfast.Errorf(holdfast.Corrupt, "find chunk", "no readable container has chunk %s", r.Digest)
				x.where = "a container that is missing or damaged"
				if len(pl.warnings) > 0 {
					x.where = pl.warnings[0].Error()
				}
			}
			if !yield(x, nil) {
				return stop
			}
			return nil
		})
		if err != nil && err != stop { //nolint:errorlint // our own value
			yield(piece{}, err)
		}
	}
	return pl, nil
}

// nowhere is the place of a chunk that was not found.
var nowhere = chunkAt{^uint32(0), ^uint32(0)}

// A walker walks the recipe of one disk.
type walker struct {
	d     *dedupPool
	ctx   context.Context // of the one restore
	nodes map[holdfast.Digest][]chunkAt
	data  map[holdfast.Digest]chunkAt
	more  map[holdfast.Digest][]chunkAt // further places of the same chunk
}

// findNodes remembers where nodes lie.
func (w *walker) findNodes(file int, b *book) {
	for _, g := range b.f.Groups {
		if g.Type != container.Node {
			continue
		}
		for i := g.First; i < g.First+g.Count; i++ {
			c := &b.f.Chunks[i]
			w.nodes[c.Digest] = append(w.nodes[c.Digest], chunkAt{uint32(file), i})
		}
	}
}

// findData remembers where the chunks lie that the disk needs.
func (w *walker) findData(file int, b *book) {
	for i := range b.f.Chunks {
		c := &b.f.Chunks[i]
		at, needed := w.data[c.Digest]
		switch {
		case !needed:
		case at == nowhere:
			w.data[c.Digest] = chunkAt{uint32(file), uint32(i)}
		default:
			w.more[c.Digest] = append(w.more[c.Digest], chunkAt{uint32(file), uint32(i)})
		}
	}
}

// walk yields the refs below a node that begins at base, in order.
func (w *walker) walk(d holdfast.Digest, span uint8, base int64, yield func(holdfast.Ref) error) error {
	b, err := w.node(d)
	if err != nil {
		return err
	}
	n, err := parseNode(b, span)
	if err != nil {
		return err
	}
	for _, r := range n.refs {
		r.Off += base
		if err := yield(r); err != nil {
			return err
		}
	}
	for _, c := range n.children {
		if err := w.walk(c.digest, n.child, base+int64(c.index)<<n.child, yield); err != nil {
			return err
		}
	}
	return nil
}

// node reads a node from any of its places.
func (w *walker) node(d holdfast.Digest) ([]byte, error) {
	err := error(holdfast.Errorf(holdfast.Corrupt, "read recipe", "no readable container has the node %s", d))
	for _, at := range w.nodes[d] {
		b, e := w.d.lib.chunk(w.ctx, at)
		if e == nil {
			return b, nil
		}
		if c := blob.Cancelled(w.ctx, "read recipe"); c != nil {
			return nil, c
		}
		err = holdfast.Errorf(holdfast.Corrupt, "read recipe", "%s: %w", w.d.lib.files[at.file].label, e)
	}
	return nil, err
}

// explain adds what is known of damage to an error about the recipe.
func (w *walker) explain(err error, warnings []error) error {
	if holdfast.KindOf(err) != holdfast.Corrupt || len(warnings) == 0 {
		return err
	}
	return holdfast.Errorf(holdfast.Corrupt, "restore", "%w (%w)", err, warnings[0]).Advise("the map of this disk is damaged; restore another point in time")
}
