package rescue_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store/s3test"
	"github.com/holdfast-backup/holdfast/pools/container"
	"github.com/holdfast-backup/holdfast/pools/dedup"
	"github.com/holdfast-backup/holdfast/pools/object"
	"github.com/holdfast-backup/holdfast/pools/seal"
	"github.com/holdfast-backup/holdfast/pools/standard"
	"github.com/holdfast-backup/holdfast/rescue"
)

var background = context.Background()

// A lab is a pool of a real driver on real folders, and what it must hold.
type lab struct {
	t     *testing.T
	dir   string
	rng   *rand.Rand
	pool  pools.Pool
	disks []holdfast.DiskID
	now   time.Time
	truth map[holdfast.SetID][][]byte
	order []holdfast.SetID
}

const diskSize = 3 << 20

func newLab(t *testing.T, d pools.Driver, dir string, config map[string]any) *lab {
	t.Helper()
	l := &lab{t: t, dir: dir, rng: rand.New(rand.NewPCG(7, 8)), now: time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC), truth: map[holdfast.SetID][][]byte{}}
	for range 2 {
		l.disks = append(l.disks, holdfast.DiskID{ID: holdfast.NewID()})
	}
	raw, err := json.Marshal(config)
	l.ok(err)
	id := holdfast.PoolID{ID: holdfast.NewID()}
	env := pools.Env{Clock: clock.System, StateDir: filepath.Join(dir, "state"), Secrets: os.ReadFile}
	l.ok(d.Create(background, env, id, raw))
	l.pool, err = d.Open(background, env, id, raw)
	l.ok(err)
	return l
}

func (l *lab) ok(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatalf("%v (%s)", err, holdfast.HintOf(err))
	}
}

// backup changes some bytes of the disks and writes a set: a full one first, then what changed.
func (l *lab) backup() holdfast.SetID {
	l.t.Helper()
	l.now = l.now.Add(time.Hour)
	m := holdfast.Manifest{ID: holdfast.SetID{ID: holdfast.NewTimeID(l.now)}, Created: l.now, Kind: holdfast.Full, Consistency: holdfast.CrashConsistent,
		VM: holdfast.VMInfo{ID: holdfast.VMID{ID: l.disks[0].ID}, Name: "Mail Server", Generation: 2}, HostName: "hv1"}
	var images [][]byte
	if n := len(l.order); n > 0 {
		m.Kind, m.Parent = holdfast.Incremental, l.order[n-1]
		for _, b := range l.truth[m.Parent] {
			images = append(images, bytes.Clone(b))
		}
	} else {
		images = [][]byte{make([]byte, diskSize), make([]byte, diskSize)}
	}
	for i, id := range l.disks {
		m.Disks = append(m.Disks, holdfast.Disk{ID: id, Name: fmt.Sprintf("disk%d.vhdx", i), Size: diskSize, Format: "vhdx", Subformat: "dynamic", BlockSize: 1 << 20,
			LogicalSector: 512, PhysicalSector: 4096, Controller: "scsi", Slot: i, Inherit: !m.Parent.IsZero()})
	}
	ses, err := l.pool.Begin(background, m)
	l.ok(err)
	for i, id := range l.disks {
		w, err := ses.Disk(background, id)
		l.ok(err)
		l.change(w, images[i])
		l.ok(w.Close(background))
	}
	r, err := ses.Commit(background, m)
	l.ok(err)
	l.truth[r.Manifest.ID] = images
	l.order = append(l.order, r.Manifest.ID)
	return r.Manifest.ID
}

// change writes some runs of new bytes, of odd lengths and beginnings, and some zeros.
func (l *lab) change(w pools.DiskWriter, image []byte) {
	l.t.Helper()
	h, enc, at := l.pool.Traits().Domain.Hasher(), chunk.NewEncoder(chunk.LevelFast), 0
	for at < len(image)-400<<10 {
		at += l.rng.IntN(300 << 10)
		n := 1 + l.rng.IntN(200<<10)
		if l.rng.IntN(5) == 0 {
			clear(image[at : at+n])
			l.ok(w.Place(background, []holdfast.Ref{{Extent: holdfast.Extent{Off: int64(at), Len: int64(n)}}}))
			at += n
			continue
		}
		word := []byte(fmt.Sprintf("%x ", l.rng.Uint64()))
		for i := range n {
			image[at+i] = word[i%len(word)] ^ byte(i>>12)
		}
		b := chunk.NewBuilder()
		var refs []holdfast.Ref
		for off := at; off < at+n; {
			k := min(1+l.rng.IntN(40<<10), at+n-off)
			p := image[off : off+k]
			b.Add(h.Sum(p), p)
			refs = append(refs, holdfast.Ref{Extent: holdfast.Extent{Off: int64(off), Len: int64(k)}, Digest: h.Sum(p)})
			off += k
		}
		g := b.Encode(enc, nil)
		l.ok(w.Put(background, &g))
		l.ok(w.Place(background, refs))
		at += n
	}
}

// history makes sets, deletes some, and gives their space back.
func (l *lab) history(n int) {
	l.t.Helper()
	for range n {
		l.backup()
	}
	for i := len(l.order) - 2; i >= 0; i -= 2 {
		l.ok(l.pool.Delete(background, l.order[i]))
		delete(l.truth, l.order[i])
	}
	if c, ok := l.pool.(pools.Collector); ok {
		_, err := c.Collect(background, pools.CollectOptions{})
		l.ok(err)
	}
	l.ok(l.pool.Close())
}

// image is a disk in memory.
type image []byte

func (m image) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

// check restores everything from a place and compares it.
func (l *lab) check(at rescue.Place) {
	l.t.Helper()
	p, err := rescue.Open(background, at)
	l.ok(err)
	defer p.Close()
	found := 0
	for m, err := range p.Sets(background) {
		l.ok(err)
		want := l.truth[m.ID]
		if want == nil || m.VM.Name != "Mail Server" {
			l.t.Fatalf("a set that should not be there: %s of %s", m.ID, m.VM.Name)
		}
		found++
		for i := range m.Disks {
			got := make(image, diskSize)
			r, err := p.Restore(background, m.ID, i, got, rescue.Options{})
			l.ok(err)
			if !bytes.Equal(got, want[i]) || len(r.Damaged) > 0 {
				l.t.Errorf("set %s, disk %d: it differs from what was written", m.ID, i)
			}
		}
	}
	if found != len(l.truth) {
		l.t.Errorf("%d sets, want %d", found, len(l.truth))
	}
}

// TestEveryKindOfPoolIsRestored makes histories with the real drivers and reads them with nothing but the documents' implementation.
func TestEveryKindOfPoolIsRestored(t *testing.T) {
	t.Run("dedup folder", func(t *testing.T) {
		dir := t.TempDir()
		l := newLab(t, dedup.Driver(), dir, map[string]any{"path": dir + "/pool"})
		l.history(7)
		l.check(rescue.Place{Paths: []string{dir + "/pool"}})
		l.ok(os.RemoveAll(dir + "/pool/index"))
		l.ok(os.Remove(dir + "/pool/HOLDFAST"))
		l.check(rescue.Place{Paths: []string{dir + "/pool"}})
	})
	t.Run("standard, two paths", func(t *testing.T) {
		dir := t.TempDir()
		l := newLab(t, standard.Driver(), dir, map[string]any{"paths": []map[string]any{{"path": dir + "/a"}, {"path": dir + "/b"}}})
		l.history(7)
		l.check(rescue.Place{Paths: []string{dir + "/b", dir + "/a"}})
	})
	t.Run("stripe, two folders lost", func(t *testing.T) {
		dir := t.TempDir()
		var paths []string
		for i := range 6 {
			paths = append(paths, fmt.Sprintf("%s/d%d", dir, i))
		}
		l := newLab(t, dedup.Driver(), dir, map[string]any{"paths": paths, "stripe": "4+2"})
		l.history(5)
		l.check(rescue.Place{Paths: paths})
		l.ok(os.RemoveAll(paths[1]))
		l.ok(os.RemoveAll(paths[4]))
		l.check(rescue.Place{Paths: paths})
		l.check(rescue.Place{Paths: []string{paths[5], paths[3], paths[0], paths[2]}})
	})
}

// TestBucketsAreRestored reads a bucket, and a stripe of buckets of which one is gone, on a real S3 server.
func TestBucketsAreRestored(t *testing.T) {
	server := s3test.Start(t)
	files := t.TempDir()
	for name, text := range map[string]string{"access": server.AccessKey, "secret": server.SecretKey, "ca": string(server.CA.PEM)} {
		if err := os.WriteFile(filepath.Join(files, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bucket := func(name string) s3store.Config {
		return s3store.Config{Endpoint: server.URL, Bucket: name, Prefix: "pool", Region: "us-east-1", Style: s3store.PathStyle, Clock: clock.System,
			AccessKey: s3store.Secret(server.AccessKey), SecretKey: s3store.Secret(server.SecretKey), CA: server.CA.PEM}
	}
	config := func(more map[string]any) map[string]any {
		c := map[string]any{"endpoint": server.URL, "prefix": "pool", "region": "us-east-1", "path_style": true,
			"ca_file": files + "/ca", "access_key_file": files + "/access", "secret_key_file": files + "/secret"}
		maps.Copy(c, more)
		return c
	}
	for _, name := range []string{"single", "one", "two", "three"} {
		if err := s3store.MakeBucket(background, bucket(name), false); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("one", func(t *testing.T) {
		l := newLab(t, object.Driver(), t.TempDir(), config(map[string]any{"bucket": "single"}))
		l.history(5)
		l.check(rescue.Place{Buckets: []s3store.Config{bucket("single")}})
	})
	t.Run("striped", func(t *testing.T) {
		l := newLab(t, object.Driver(), t.TempDir(), config(map[string]any{"buckets": []string{"one", "two", "three"}, "stripe": "2+1"}))
		l.history(3)
		l.check(rescue.Place{Buckets: []s3store.Config{bucket("three"), bucket("one")}})
	})
}

// TestEncryptedPoolNeedsItsKey opens with the key file and with the recovery sheet's key, and says what is missing without.
func TestEncryptedPoolNeedsItsKey(t *testing.T) {
	dir := t.TempDir()
	key := seal.NewKey()
	if err := os.WriteFile(dir+"/pool.key", key.KeyFile(), 0o600); err != nil {
		t.Fatal(err)
	}
	l := newLab(t, dedup.Driver(), dir, map[string]any{"path": dir + "/pool", "encryption": "key-file", "key_file": dir + "/pool.key"})
	sheet, err := l.pool.(interface {
		Sheet(string, time.Time) ([]byte, error)
	}).Sheet("main", time.Now())
	l.ok(err)
	l.history(5)
	at := rescue.Place{Paths: []string{dir + "/pool"}}
	if _, err := rescue.Open(background, at); !errors.Is(err, holdfast.Permission) || !strings.Contains(holdfast.HintOf(err), "--key-file") {
		t.Errorf("without a key: %v", err)
	}
	at.Secret = seal.NewKey().Secret()
	if _, err := rescue.Open(background, at); !errors.Is(err, holdfast.Permission) {
		t.Errorf("with another key: %v", err)
	}
	at.Secret = key.Secret()
	l.check(at)
	var lines []string
	for _, line := range strings.Split(string(sheet), "\n") {
		if f := strings.Fields(line); len(f) == 2 && (len(f[0]) == 1 && f[0] >= "1" && f[0] <= "4" || f[0] == "key") {
			lines = append(lines, line)
		}
	}
	if at.Secret, err = seal.Read(seal.KeyFile, []byte(strings.Join(lines, "\n"))); err != nil {
		t.Fatalf("the sheet's key: %v\n%s", err, sheet)
	}
	l.check(at)
}

// containers lists the container files below a folder.
func containers(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasSuffix(name, ".map") {
			files = append(files, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestDamageIsNamedAndTheRestIsRestored flips a byte in the middle of a container, and cuts one short.
func TestDamageIsNamedAndTheRestIsRestored(t *testing.T) {
	for name, spoil := range map[string]func(b []byte) []byte{
		"flipped byte": func(b []byte) []byte {
			_, f, err := container.Load(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				panic(err)
			}
			b[f.Groups[len(f.Groups)/2].PayloadOff()] ^= 1
			return b
		},
		"cut short": func(b []byte) []byte { return b[:len(b)*2/3] },
		"footer":    func(b []byte) []byte { b[len(b)-30] ^= 1; return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := newLab(t, dedup.Driver(), dir, map[string]any{"path": dir + "/pool"})
			id := l.backup()
			l.ok(l.pool.Close())
			files := containers(t, dir+"/pool/containers")
			var largest string
			var size int64
			for _, f := range files {
				if i, err := os.Stat(f); err == nil && i.Size() > size {
					largest, size = f, i.Size()
				}
			}
			b, err := os.ReadFile(largest)
			l.ok(err)
			l.ok(os.WriteFile(largest, spoil(b), 0o600))
			p, err := rescue.Open(background, rescue.Place{Paths: []string{dir + "/pool"}})
			l.ok(err)
			defer p.Close()
			damaged := 0
			for disk := range l.disks {
				got := make(image, diskSize)
				_, err := p.Restore(background, id, disk, got, rescue.Options{})
				if err == nil {
					if !bytes.Equal(got, l.truth[id][disk]) {
						t.Errorf("disk %d differs, and nobody says so", disk)
					}
					continue
				}
				damaged++
				if !errors.Is(err, holdfast.Corrupt) || !strings.Contains(err.Error(), filepath.Base(largest)) {
					t.Errorf("the error does not name the container: %v", err)
				}
				got = make(image, diskSize)
				r, err := p.Restore(background, id, disk, got, rescue.Options{KeepGoing: true})
				if err != nil { // the map itself is hit
					continue
				}
				want := bytes.Clone(l.truth[id][disk])
				for _, d := range r.Damaged {
					clear(want[d.Extent.Off : d.Extent.Off+d.Extent.Len])
				}
				if len(r.Damaged) == 0 || !bytes.Equal(got, want) {
					t.Errorf("what is not damaged was not restored; damage: %+v", r.Damaged)
				}
			}
			if damaged == 0 && name != "footer" {
				t.Error("no disk was hit")
			}
		})
	}
}

// TestPlacesThatAreNoPools: what cannot be opened is explained.
func TestPlacesThatAreNoPools(t *testing.T) {
	dir := t.TempDir()
	for want, at := range map[holdfast.Kind]rescue.Place{
		holdfast.Invalid:  {},
		holdfast.Offline:  {Paths: []string{dir + "/nothing"}},
		holdfast.NotExist: {Paths: []string{dir}},
	} {
		if _, err := rescue.Open(background, at); holdfast.KindOf(err) != want || holdfast.HintOf(err) == "" {
			t.Errorf("%+v: %v, want %v", at, err, want)
		}
	}
}
