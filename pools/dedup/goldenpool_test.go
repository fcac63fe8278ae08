package dedup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

// The golden pools below testdata/pools were written once, by the first version of the format, and are never written anew.
const goldenPools = "testdata/pools"

// goldenDisk is the size of the golden disk: its recipe has an interior node above its leaves.
const goldenDisk = 300 << 20

// A goldenPool is one kind of pool there is.
type goldenPool struct {
	name   string
	secret string // the file beside the pool that opens it, and
	kind   string // the kind of encryption; "": none
	parity bool
	stripe string // over folders instead of one
}

var goldenPoolKinds = []goldenPool{
	{name: "plain-v1"},
	{name: "keyfile-v1", kind: "key-file", secret: "keyfile-v1.key"},
	{name: "passphrase-v1", kind: "passphrase", secret: "passphrase-v1.txt"},
	{name: "sidecars-v1", parity: true},
	{name: "striped-v1", stripe: "2+1"},
}

// config is the driver's configuration of a copy of the pool in dir.
func (g goldenPool) config(t *testing.T, dir string) (pools.Env, json.RawMessage) {
	t.Helper()
	c := Config{Parity: g.parity, Stripe: g.stripe}
	if g.stripe == "" {
		c.Path = dir
	} else {
		for i := range 3 {
			c.Paths = append(c.Paths, filepath.Join(dir, fmt.Sprint(i)))
		}
	}
	c.Encryption = Encryption{Encryption: g.kind, KeyFile: g.secret}
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return pools.Env{Secrets: func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(goldenPools, name)) }}, raw
}

// goldenImage is what the golden disk holds after so many days, as writes: text that compresses, noise that does not, holes, and on every day some
// pages anew, one of them a hole.
func goldenImage(day int) map[int64][]byte {
	rng := rand.New(rand.NewPCG(2026, 1))
	pages := map[int64][]byte{}
	for i := range int64(24) {
		p := noise(rng, 4096)
		if i%2 == 0 {
			copy(p, strings.Repeat(fmt.Sprintf("page %d of the golden disk; ", i), 200))
		}
		pages[i<<12] = p
		pages[goldenDisk-(i+1)<<12] = noise(rng, 4096)
	}
	for d := range day {
		for k := range int64(4) {
			pages[(int64(d)*3+k*5)<<12] = noise(rng, 4096)
		}
		pages[int64(10+d)<<12] = nil
	}
	return pages
}

// Goal: what version 1 of the format wrote restores for ever, on every kind of pool: as it is, after a collect, after a set was added to it, and with its
// index lost. Method: pools written once, with a full set, increments, deleted sets and a collect; opened from a copy by what
// the driver's configuration says. Containers with side-cars are damaged first.
func TestGoldenPoolsRestore(t *testing.T) {
	for _, g := range goldenPoolKinds {
		t.Run(g.name, func(t *testing.T) {
			if _, err := os.Stat(filepath.Join(goldenPools, g.name)); *update && errors.Is(err, os.ErrNotExist) {
				g.write(t) // what is there stays what it is
			}
			dir := filepath.Join(t.TempDir(), g.name)
			if err := os.CopyFS(dir, os.DirFS(filepath.Join(goldenPools, g.name))); err != nil {
				t.Fatal(err)
			}
			if g.parity {
				spoil(t, dir)
			}
			env, conf := g.config(t, dir)
			id, err := Driver().Identify(background, env, conf)
			if err != nil {
				t.Fatal(err)
			}
			l := &goldenLab{lab: lab{t: t}}
			l.openGolden(env, id, conf)
			defer func() { l.closeGolden() }()
			sets := l.goldenSets()
			for _, d := range l.verify().Damaged {
				if !g.parity || !strings.Contains(d.Text, "repaired bit by bit") {
					t.Error(d.Text)
				}
			}
			if rep := l.verify(); len(rep.Damaged) > 0 || rep.Sets != 2 {
				t.Errorf("%+v", rep)
			}
			l.collect()
			page := bytes.Repeat([]byte("new "), 1024)
			added := l.must(l.backup(goldenDisk, sets[1], write{off: 0, bytes: page}))
			want := goldenImage(3)
			want[0] = page
			l.pages(added, want)
			if err := l.p.Delete(background, added); err != nil {
				t.Fatal(err)
			}
			l.closeGolden()
			l.openGolden(env, id, conf)
			l.goldenSets()
		})
	}
}

// A goldenLab is a lab over whatever the driver opens.
type goldenLab struct {
	lab
	x pools.Pool
}

func (l *goldenLab) openGolden(env pools.Env, id holdfast.PoolID, conf json.RawMessage) {
	l.t.Helper()
	x, err := Driver().Open(background, env, id, conf)
	if err != nil {
		l.t.Fatal(err)
	}
	l.x = x
	switch p := x.(type) {
	case *Pool:
		l.p = p
	case *StripedPool:
		l.p = p.Pool
	}
}

// spoil changes a run of bytes in the middle of a container that has a side-car.
func spoil(t *testing.T, dir string) {
	t.Helper()
	pars, err := filepath.Glob(filepath.Join(dir, containersDir, "*", "*.par"))
	if err != nil || len(pars) == 0 {
		t.Fatalf("no side-cars: %v", err)
	}
	for _, name := range pars {
		name = strings.TrimSuffix(name, ".par")
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range b[len(b)/2:][:20] {
			b[len(b)/2+i] ^= 0x55
		}
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func (l *goldenLab) closeGolden() {
	l.t.Helper()
	if err := l.x.Close(); err != nil {
		l.t.Fatal(err)
	}
}

// goldenSets checks that the two sets are there and hold what they did, and returns them, the older first.
func (l *goldenLab) goldenSets() []holdfast.SetID {
	l.t.Helper()
	var found []holdfast.Manifest
	for m, err := range l.x.Sets(background) {
		if err != nil {
			l.t.Fatal(err)
		}
		found = append(found, m)
	}
	if len(found) != 2 {
		l.t.Fatalf("%d sets", len(found))
	}
	if found[0].Parent == found[1].ID {
		slices.Reverse(found)
	}
	var ids []holdfast.SetID
	for i, m := range found {
		if m.VM.Name != "vm" || len(m.Disks) != 1 || m.Disks[0].Size != goldenDisk {
			l.t.Fatalf("%+v", m)
		}
		l.vm, l.disk = m.VM.ID, m.Disks[0].ID
		l.pages(m.ID, goldenImage(i+2))
		ids = append(ids, m.ID)
	}
	return ids
}

// pages checks that a set's disk holds these pages and nothing else.
func (l *goldenLab) pages(id holdfast.SetID, want map[int64][]byte) {
	l.t.Helper()
	s, err := l.x.Open(background, id)
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	got := map[int64][]byte{}
	dec, h := chunk.NewDecoder(), l.p.domain.Hasher()
	for pc, err := range s.Read(background, l.disk, holdfast.Extents{{Off: 0, Len: goldenDisk}}) {
		if err != nil {
			l.t.Fatal(err)
		}
		plain, err := dec.Open(h, &pc.Group, nil, nil)
		if err != nil {
			l.t.Fatal(err)
		}
		for _, pl := range pc.Places {
			for at := range int64(pl.Len) {
				off := pl.Off + at
				if got[off&^4095] == nil {
					got[off&^4095] = make([]byte, 4096)
				}
				got[off&^4095][off&4095] = plain[int64(pl.At)+at]
			}
		}
		pc.Release()
	}
	maps.DeleteFunc(want, func(_ int64, p []byte) bool { return p == nil })
	if !maps.EqualFunc(got, want, bytes.Equal) {
		l.t.Fatalf("set %s does not hold what was backed up: %d pages instead of %d", id, len(got), len(want))
	}
}

// write makes the golden pool: days 0 to 3 as sets, of which the first two are deleted and collected.
func (g goldenPool) write(t *testing.T) {
	dir := filepath.Join(goldenPools, g.name)
	err := os.RemoveAll(dir)
	if g.kind == "key-file" {
		err = errors.Join(err, os.WriteFile(filepath.Join(goldenPools, g.secret), seal.NewKey().KeyFile(), 0o644))
	}
	if g.kind == "passphrase" {
		err = errors.Join(err, os.WriteFile(filepath.Join(goldenPools, g.secret), []byte("a phrase for everyone to read\n"), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	env, conf := g.config(t, dir)
	id := holdfast.PoolID{ID: holdfast.NewID()}
	if err := Driver().Create(background, env, id, conf); err != nil {
		t.Fatal(err)
	}
	l := &goldenLab{lab: lab{t: t, vm: holdfast.VMID{ID: holdfast.NewID()}, disk: holdfast.DiskID{ID: holdfast.NewID()}}}
	l.openGolden(env, id, conf)
	var sets []holdfast.SetID
	var parent holdfast.SetID
	for day := range 4 {
		var ws []write
		before := goldenImage(max(day-1, 0))
		now := goldenImage(day)
		for _, off := range slices.Sorted(maps.Keys(now)) {
			if p := now[off]; day == 0 || !bytes.Equal(p, before[off]) {
				ws = append(ws, write{off: off, bytes: p, zeros: 4096})
			}
		}
		parent = l.must(l.backup(goldenDisk, parent, ws...))
		sets = append(sets, parent)
	}
	for _, s := range sets[:2] {
		if err := l.p.Delete(background, s); err != nil {
			t.Fatal(err)
		}
	}
	l.collect()
	l.verify() // makes side-cars of containers that have none yet
	l.closeGolden()
	// What a lost index needs is not kept, nor what no version control keeps: locks and empty folders.
	for _, d := range []string{dir, filepath.Join(dir, "0"), filepath.Join(dir, "1"), filepath.Join(dir, "2")} {
		for _, n := range []string{"index", "lock", "LOCK", "staging"} {
			if err := os.RemoveAll(filepath.Join(d, n)); err != nil {
				t.Fatal(err)
			}
		}
	}
}
