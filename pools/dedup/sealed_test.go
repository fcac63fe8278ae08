package dedup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/memory/memorytest"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

// sealed is encryption with a new key.
func sealed() Sealing { return sealedWith(seal.NewKey()) }

func sealedWith(k seal.Key) Sealing {
	return Sealing{Kind: seal.KeyFile, Secret: func() (seal.Secret, error) { return k.Secret(), nil }}
}

// TestSealedConformance runs every named check of the Pool interface on an encrypted pool.
func TestSealedConformance(t *testing.T) {
	h := sealedHarness(t, sealed())
	for _, c := range pooltest.Checks() {
		t.Run(strings.ReplaceAll(c.Name, "/", "-"), func(t *testing.T) { c.Run(t, h) })
	}
}

// Goal: encrypted and memory pools restore the same, whatever happens. Method: random histories with crashes and restarts.
func TestSealedHistoriesRestoreAsTheReferenceDoes(t *testing.T) {
	for seed := range uint64(3 * soak(t)) {
		pooltest.RunHistory(t, pooltest.History{Seed: 100 + seed, Steps: 50, Pools: map[string]pooltest.Harness{"sealed": sealedHarness(t, sealed()), "memory": memorytest.Harness()}})
	}
}

// Goal: a power cut at any sync point of an encrypted pool, its making included, loses no acknowledged set. Method: images at sync points.
func TestSealedPowerCutsLoseNothingAcknowledged(t *testing.T) {
	id := holdfast.PoolID{ID: holdfast.NewID()}
	s := sealed()
	for seed := range uint64(soak(t)) {
		pooltest.RunCrashes(t, pooltest.Crashes{Seed: seed, Steps: 25, Points: 100, Open: func(fs fsys.FS) (pools.Pool, error) {
			err := CreateSealedOn(background, pools.Env{}, fs, id, defaultChunking(t), s)
			if err != nil && holdfast.KindOf(err) != holdfast.Exist {
				return nil, err
			}
			p, err := OpenSealedOn(background, pools.Env{}, fs, id, s)
			if err != nil {
				return nil, err
			}
			return p, nil
		}})
	}
}

// everyFile calls visit for each file below dir.
func everyFile(t testing.TB, fs fsys.FS, dir string, visit func(name string, b []byte)) {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		full := path.Join(dir, n)
		st, err := fs.Stat(full)
		if err != nil {
			t.Fatal(err)
		}
		if st.IsDir() {
			everyFile(t, fs, full, visit)
			continue
		}
		b, err := fsys.ReadFile(fs, full, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		visit(full, b)
	}
}

const (
	plantedVM      = "payroll-db-07"
	plantedDisk    = "salaries-2026.vhdx"
	plantedContent = "IBAN DE02 1203 0000 0000 2020 51 "
)

// plantedSet backs up a VM whose name, disk and content must not show. Everything is stored plain, by codec, where that is possible.
func plantedSet(t *testing.T, l *lab) (holdfast.SetID, []byte) {
	t.Helper()
	content := bytes.Repeat([]byte(plantedContent), 20_000)
	content = append(content[:512<<10:512<<10], noise(rand.New(rand.NewPCG(1, 1)), 64<<10)...)
	copy(content[(512<<10)+100:], plantedContent) // in a chunk that does not shrink
	m := l.manifest(int64(len(content)), holdfast.SetID{})
	m.VM.Name, m.Disks[0].Name, m.HostName = plantedVM, plantedDisk, "hv-"+plantedVM
	s, err := l.p.Begin(background, m)
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Disk(background, l.disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.write(w, write{bytes: content}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(background); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(background, m); err != nil {
		t.Fatal(err)
	}
	return m.ID, content
}

// findPlanted returns where planted things show, in the clear or in a form one could guess.
func findPlanted(t *testing.T, l *lab) (found []string) {
	t.Helper()
	dk := l.p.sb.Key
	everyFile(t, l.fs, ".", func(name string, b []byte) {
		for what, s := range map[string][]byte{"VM name": []byte(plantedVM), "disk name": []byte(plantedDisk), "content": []byte(plantedContent), "part of content": []byte("IBAN DE02"),
			"VM id": l.vm.ID[:], "VM id in text": []byte(l.vm.String()), "disk id in text": []byte(l.disk.String()), "disk id": l.disk.ID[:],
			"chunk-name key": dk, "node of a recipe": []byte(nodeMagic + "\x01"), "JSON of a manifest": []byte(`"disks"`)} {
			if bytes.Contains(b, s) || strings.Contains(name, string(s)) {
				found = append(found, what+" in "+name)
			}
		}
	})
	return found
}

// Goal: nothing planted shows in any byte of an encrypted pool, index, log and leftovers included, at any time; in a pool that is not
// encrypted the same search finds it.
func TestNoPlaintextInAnyByteOfThePool(t *testing.T) {
	plain := newLab(t, fsys.NewMem(1))
	plantedSet(t, plain)
	if len(findPlanted(t, plain)) < 6 {
		t.Fatalf("the search is blind: it finds %v", findPlanted(t, plain))
	}
	l := newSealedLab(t, fsys.NewMem(1), sealed())
	id, content := plantedSet(t, l)
	step := func(what string) {
		t.Helper()
		if found := findPlanted(t, l); len(found) > 0 {
			t.Fatalf("after %s: %v", what, found)
		}
	}
	step("a backup")
	second := l.must(l.backup(int64(len(content)), id, write{off: 4096, bytes: bytes.Repeat([]byte(plantedContent), 124)}))
	step("an incremental")
	l.verify()
	if err := l.p.Delete(background, id); err != nil {
		t.Fatal(err)
	}
	if _, err := l.p.RotateKeys(background, seal.Rotation{Redo: true}); err != nil {
		t.Fatal(err)
	}
	l.collect()
	step("a collect")
	l.reopen()
	step("opening again")
	if err := clearFolder(l.fs, indexDir); err == nil {
		_, err = l.restore(second)
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := l.p.Begin(background, l.manifest(8192, holdfast.SetID{}))
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Disk(background, l.disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.write(w, write{bytes: bytes.Repeat([]byte("PLANTED "), 1024)}); err != nil {
		t.Fatal(err)
	}
	step("half a backup")
	if err := s.Abort(background); err != nil {
		t.Fatal(err)
	}
	step("an aborted backup")
}

// Goal: without the right key nothing is read or written, and the error says what to do. Method: every way to have a wrong one.
func TestWrongKeyFailsClosed(t *testing.T) {
	fs := fsys.NewMem(1)
	right := seal.NewKey()
	l := newSealedLab(t, fs, sealedWith(right))
	id, content := plantedSet(t, l)
	if err := l.p.Close(); err != nil {
		t.Fatal(err)
	}
	before := map[string]string{}
	everyFile(t, fs, ".", func(name string, b []byte) { before[name] = string(b) })
	phrase, err := seal.ReadPassphrase([]byte("correct horse battery staple"))
	if err != nil {
		t.Fatal(err)
	}
	file := func(b []byte, err error) Sealing {
		s, serr := Encryption{Encryption: EncryptKeyFile, KeyFile: "k"}.Sealing(pools.Env{Secrets: func(string) ([]byte, error) { return b, err }})
		if serr != nil {
			t.Fatal(serr)
		}
		return s
	}
	for name, c := range map[string]struct {
		s    Sealing
		kind holdfast.Kind
	}{
		"another key":        {sealed(), holdfast.Permission},
		"a passphrase":       {Sealing{Secret: func() (seal.Secret, error) { return phrase, nil }}, holdfast.Permission},
		"no key":             {Sealing{}, holdfast.Permission},
		"missing key file":   {file(nil, holdfast.Errorf(holdfast.NotExist, "", "no such file")), holdfast.NotExist},
		"truncated key file": {file(right.KeyFile()[:180], nil), holdfast.Invalid},
		"empty key file":     {file(nil, nil), holdfast.Invalid},
	} {
		p, err := OpenSealedOn(background, pools.Env{}, fs, l.id, c.s)
		if err == nil {
			_ = p.Close()
			t.Fatalf("%s opens the pool", name)
		}
		if holdfast.KindOf(err) != c.kind || holdfast.HintOf(err) == "" {
			t.Errorf("%s: %v: %v (%s)", name, holdfast.KindOf(err), err, holdfast.HintOf(err))
		}
	}
	everyFile(t, fs, ".", func(name string, b []byte) {
		if before[name] != string(b) {
			t.Errorf("%s was changed by somebody without the key", name)
		}
	})
	l.p = openSealed(t, fs, l.id, file(right.KeyFile(), nil))
	l.same(id, content)
}

// Goal: an encrypted pool whose superblock was exchanged for a plain one is not written to in the clear.
func TestPlainPoolInPlaceOfAnEncryptedOneIsRefused(t *testing.T) {
	fs := fsys.NewMem(1)
	id := create(t, fs)
	if _, err := OpenSealedOn(background, pools.Env{}, fs, id, sealed()); !errors.Is(err, holdfast.Permission) || holdfast.HintOf(err) == "" {
		t.Fatal(err)
	}
}

// Goal: everything restores after rotations of the data key and of secrets, and with --reencrypt a Collect leaves nothing under the old key.
func TestRestoreAfterRotation(t *testing.T) {
	fs := fsys.NewMem(1)
	first, second := seal.NewKey(), seal.NewKey()
	l := newSealedLab(t, fs, sealedWith(first))
	id1, content1 := plantedSet(t, l)
	// The order of the appliance: add, change the configuration, rotate. A crash in between is a reopening with the new key.
	if _, err := l.p.AddKey(background, seal.KeyFile, second.Secret(), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	l.seal = sealedWith(second)
	l.reopen()
	if _, err := l.p.RotateKeys(background, seal.Rotation{Kind: seal.KeyFile, Secret: second.Secret(), Redo: true, Now: time.Unix(1, 0)}); err != nil {
		t.Fatal(err)
	}
	content2 := bytes.Clone(content1)
	copy(content2[8192:], noise(rand.New(rand.NewPCG(2, 2)), 4096))
	id2 := l.must(l.backup(int64(len(content2)), id1, write{off: 8192, bytes: content2[8192 : 8192+4096]}))
	l.reopen()
	l.same(id1, content1)
	l.same(id2, content2)
	if _, err := OpenSealedOn(background, pools.Env{}, fs.Snapshot(), l.id, sealedWith(first)); !errors.Is(err, holdfast.Permission) {
		t.Fatalf("the replaced key: %v", err)
	}
	l.collect()
	l.same(id1, content1)
	l.same(id2, content2)
	redo := l.p.redoKeys()
	l.p.mu.RLock()
	for id := range l.p.byID {
		if id < redo {
			t.Errorf("container %x still has the old key (below %x)", id, redo)
		}
	}
	l.p.mu.RUnlock()
	if r := l.collect(); r.Rewritten != 0 {
		t.Errorf("a second Collect encrypts %d containers anew", r.Rewritten)
	}
	if r := l.verify(); len(r.Damaged) != 0 {
		t.Errorf("%+v", r.Damaged)
	}
	l.reopen()
	l.same(id1, content1)
	info, err := l.p.Keys()
	if err != nil || len(info.Epochs) != 2 || len(info.Wraps) != 2 || !info.Epochs[1].Redo {
		t.Fatalf("%+v, %v", info, err)
	}
}

// Goal: a rotation that fails or is cut off anywhere leaves a pool that opens with the secret it had. Method: fail each operation of it in turn, with a power cut afterwards.
func TestRotationSurvivesFailureAnywhere(t *testing.T) {
	for n := 1; ; n++ {
		mem := fsys.NewMem(uint64(n))
		s := sealed()
		id := createSealed(t, mem, s)
		fault := fsys.NewFault(mem)
		p := openSealed(t, fault, id, s)
		times := 1
		if n%2 == 0 {
			times = fsys.Forever
		}
		fault.Inject(fsys.Rule{Nth: n, Times: times, Err: errors.New("pulled out")})
		_, err := p.RotateKeys(background, seal.Rotation{})
		left := mem.Crash(nil, 50)
		_ = p.release()
		q := openSealed(t, left, id, s)
		if cerr := q.Close(); cerr != nil {
			t.Fatal(cerr)
		}
		if err == nil {
			t.Logf("rotation: %d operations failed one at a time", n-1)
			return
		}
		if n > 200 {
			t.Fatal("the rotation has no end")
		}
	}
}

// Goal: a damaged copy of the keyring is healed by opening; both damaged is an error that says what to do.
func TestKeyringHealsFromItsCopy(t *testing.T) {
	fs := fsys.NewMem(1)
	l := newSealedLab(t, fs, sealed())
	id, content := plantedSet(t, l)
	g := l.p.keys.ring.Load().Generation()
	for _, n := range []string{keysName(g), keysName(g) + copySuffix} {
		flip(t, fs, n, 200)
		l.reopen()
		l.same(id, content)
		if b, err := fsys.ReadFile(fs, n, seal.MaxRing); err != nil {
			t.Fatal(err)
		} else if _, err := seal.Parse(b); err != nil {
			t.Fatalf("%s was not healed: %v", n, err)
		}
	}
	if err := l.p.Close(); err != nil {
		t.Fatal(err)
	}
	both := fs.Snapshot()
	flip(t, both, keysName(g), 200)
	flip(t, both, keysName(g)+copySuffix, 201)
	if _, err := OpenSealedOn(background, pools.Env{}, both, l.id, l.seal); !errors.Is(err, holdfast.Corrupt) || holdfast.HintOf(err) == "" {
		t.Fatalf("both copies damaged: %v", err)
	}
	l.p = openSealed(t, fs, l.id, l.seal)
}

// Goal: a scrub without the key finds every flipped bit of what the pool keeps, and nothing in a pool that is whole. Method: random flips
// in every kind of object, one at a time.
func TestScrubWithoutKeyFindsEveryFlip(t *testing.T) {
	fs := fsys.NewMem(1)
	l := newSealedLab(t, fs, sealed())
	id, content := plantedSet(t, l)
	l.must(l.backup(int64(len(content)), id, write{off: 0, bytes: noise(rand.New(rand.NewPCG(3, 3)), 40960)}))
	if err := l.p.Close(); err != nil {
		t.Fatal(err)
	}
	clean, err := ScrubOn(background, fs, nil)
	if err != nil || len(clean.Damaged) != 0 || clean.Sets != 2 || clean.Chunks == 0 {
		t.Fatalf("a pool that is whole: %+v, %v", clean, err)
	}
	type file struct {
		name string
		size int
	}
	var files []file
	total := 0
	everyFile(t, fs, ".", func(name string, b []byte) {
		if !strings.HasPrefix(name, indexDir+"/") && name != "lock" && len(b) > 0 { // the index is rebuildable, and has checksums of its own
			files = append(files, file{name, len(b)})
			total += len(b)
		}
	})
	rng := rand.New(rand.NewPCG(7, 7))
	flips := 200 * soak(t)
	for i := range flips {
		f := files[i%len(files)]
		if i%2 == 0 { // half by object, half by byte
			at := rng.IntN(total)
			for _, f = range files {
				if at -= f.size; at < 0 {
					break
				}
			}
		}
		off, bit := int64(rng.IntN(f.size)), rng.IntN(8)
		flipBit(t, fs, f.name, off, bit)
		rep, err := ScrubOn(background, fs, nil)
		if err != nil || len(rep.Damaged) == 0 {
			t.Fatalf("bit %d of byte %d of %s (%d bytes): %+v, %v", bit, off, f.name, f.size, rep, err)
		}
		flipBit(t, fs, f.name, off, bit)
	}
	t.Logf("scrub without the key: %d of %d flips found in %d objects of %d bytes", flips, flips, len(files), total)
	l.p = openSealed(t, fs, l.id, l.seal)
	if rep, err := Scrub(background, l.p.med, nil); err != nil || len(rep.Damaged) != 0 {
		t.Fatalf("an open pool: %+v, %v", rep, err)
	}
}

func flipBit(t *testing.T, fs fsys.FS, name string, off int64, bit int) {
	t.Helper()
	f, err := fs.OpenWrite(name)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], off)
	if err == nil {
		b[0] ^= 1 << bit
		_, err = f.WriteAt(b[:], off)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// Goal: the driver makes and opens encrypted pools by configuration, with a key file or a passphrase, and refuses nonsense.
func TestDriverEncryptsByConfiguration(t *testing.T) {
	secrets := map[string][]byte{"pool.key": seal.NewKey().KeyFile(), "phrase": []byte("correct horse battery staple\n")}
	env := pools.Env{Secrets: func(name string) ([]byte, error) {
		if b, ok := secrets[name]; ok {
			return b, nil
		}
		return nil, holdfast.Errorf(holdfast.NotExist, "", "no %s", name)
	}}
	d := Driver()
	config := func(more string) json.RawMessage {
		return json.RawMessage(fmt.Sprintf(`{"path":%q%s}`, path.Join(t.TempDir(), "p"), more))
	}
	for _, more := range []string{`,"encryption":"key-file","key_file":"pool.key"`, `,"encryption":"passphrase","key_file":"phrase"`, `,"encryption":"none"`, ``} {
		c, id := config(more), holdfast.PoolID{ID: holdfast.NewID()}
		if err := d.Create(background, env, id, c); err != nil {
			t.Fatalf("%s: %v", more, err)
		}
		p, err := d.Open(background, env, id, c)
		if err != nil {
			t.Fatalf("%s: %v", more, err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if rep, err := ScrubFolder(background, c, nil); err != nil || len(rep.Damaged) > 0 {
			t.Fatalf("%s: %+v, %v", more, rep, err)
		}
	}
	for _, more := range []string{`,"encryption":"rot13","key_file":"pool.key"`, `,"encryption":"key-file"`, `,"key_file":"pool.key"`, `,"encryption":"key-file","key_file":"none"`, `,"encryption":"passphrase","key_file":"pool"`} {
		if err := d.Create(background, env, holdfast.PoolID{ID: holdfast.NewID()}, config(more)); err == nil || holdfast.KindOf(err) == holdfast.Internal {
			t.Errorf("%s: %v", more, err)
		}
	}
}

// BenchmarkSealed prints how fast an encrypted pool takes and gives bytes, as a share of the same without encryption, medians of five in turn.
// Nothing is cut, hashed or compressed, and nothing reaches a disk: with that work the share is nearer to one.
func BenchmarkSealed(b *testing.B) {
	const rounds = 5
	var took [2][2][]time.Duration // plain and sealed; taking and giving
	for b.Loop() {
		for range rounds {
			for i, s := range []Sealing{{}, sealed()} {
				fs := fsys.NewMem(1)
				p := openSealed(b, fs, createSealed(b, fs, s), s)
				groups := benchGroupsOf(p, 256)
				start := time.Now()
				m := ingest(b, p, groups)
				took[i][0] = append(took[i][0], time.Since(start))
				start = time.Now()
				readAllOf(b, p, m)
				took[i][1] = append(took[i][1], time.Since(start))
				if err := p.Close(); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2])
	}
	b.ReportMetric(median(took[0][0])/median(took[1][0]), "ingest-sealed/plain")
	b.ReportMetric(median(took[0][1])/median(took[1][1]), "read-sealed/plain")
	b.ReportMetric(256*320/1024/(median(took[1][0])/1e9), "ingest-stored-MiB/s")
	b.ReportMetric(256*320/1024/(median(took[1][1])/1e9), "read-stored-MiB/s")
}

func readAllOf(b *testing.B, p *Pool, m holdfast.Manifest) {
	s, err := p.Open(background, m.ID)
	if err != nil {
		b.Fatal(err)
	}
	for pc, err := range s.Read(background, m.Disks[0].ID, holdfast.Extents{{Off: 0, Len: m.Disks[0].Size}}) {
		if err != nil {
			b.Fatal(err)
		}
		pc.Release()
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}
