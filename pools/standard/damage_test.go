package standard

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// damaged makes a pool of a full and an increment, lets do spoil a file of it, and opens it again.
func damaged(t *testing.T, match string, do func(l *lab, name string)) (l *lab, full, inc holdfast.SetID, img []byte) {
	rng := rand.New(rand.NewPCG(1, 3))
	l = newLab(t, shape{paths: 1, target: 32 << 10})
	img = noise(rng, 128<<10)
	full = l.must(l.backup(128<<10, holdfast.SetID{}, write{0, img}))
	inc = l.must(l.backup(128<<10, full, write{0, img[:8192]}))
	names := l.objects(match)
	if len(names) == 0 {
		t.Fatalf("nothing matches %s", match)
	}
	if err := l.p.Close(); err != nil {
		t.Fatal(err)
	}
	_, name, _ := strings.Cut(names[0], ":")
	do(l, name)
	l.p = l.pl.open(t)
	return l, full, inc, img
}

func size(l *lab, name string) int64 {
	st, err := l.pl.fss[0].Stat(name)
	if err != nil {
		l.t.Fatal(err)
	}
	return st.Size()
}

// Goal: a data file whose footer or trailer is damaged restores all the same, from its records.
func TestDamagedFooterIsNoLoss(t *testing.T) {
	for _, back := range []int64{10, 100, 300} {
		l, full, inc, img := damaged(t, "000002.data", func(l *lab, name string) { flip(t, l.pl.fss[0], name, size(l, name)-back) })
		l.same(full, img)
		l.same(inc, img)
	}
}

// Goal: a data file that is gone is named with every set and extent it hits, and nothing else is lost.
func TestMissingDataFileIsNamed(t *testing.T) {
	l, full, inc, img := damaged(t, "000002.data", func(l *lab, name string) {
		if err := l.pl.fss[0].Remove(name); err != nil {
			t.Fatal(err)
		}
	})
	rep := l.verify()
	bad := map[holdfast.SetID]holdfast.Extents{}
	for _, d := range rep.Damaged {
		if d.VM != "Mail Server" || d.Disk != "disk.vhdx" || !strings.HasSuffix(d.Where, "000002.data") {
			t.Fatalf("%+v", d)
		}
		bad[d.Set] = append(bad[d.Set], d.Extents...)
	}
	for _, id := range []holdfast.SetID{full, inc} {
		lost := bad[id].Normal(128 << 10)
		if n := lost.Total(); n == 0 || n > 64<<10 {
			t.Fatalf("%d bytes of set %s are named", n, id)
		}
		if _, err := l.restore(id); holdfast.KindOf(err) != holdfast.Corrupt {
			t.Fatalf("restored: %v", err)
		}
		s, err := l.p.Open(background, id)
		if err != nil {
			t.Fatal(err)
		}
		got := make(buffer, 128<<10)
		whole := (holdfast.Extents{{Off: 0, Len: 128 << 10}}).Subtract(lost)
		if err := pools.ReadDisk(background, s, l.disk, whole, got, pools.ReadOptions{Domain: l.p.domain}); err != nil {
			t.Fatalf("what is not lost: %v", err)
		}
		for _, e := range whole {
			if string(got[e.Off:e.End()]) != string(img[e.Off:e.End()]) {
				t.Fatal("other bytes")
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if rep, err := pools.VerifyByReading(background, l.p, pools.VerifyOptions{}); err != nil || len(rep.Damaged) == 0 || len(rep.Damaged) > 2 {
		t.Fatalf("verify by reading: %+v, %v", rep, err)
	}
	// An increment that needs the file fails, a full one heals the chain.
	if _, err := l.backup(128<<10, inc, write{16 << 10, img[:512]}); holdfast.KindOf(err) != holdfast.Corrupt || holdfast.HintOf(err) == "" {
		t.Fatalf("an increment of a damaged set: %v", err)
	}
	l.same(l.must(l.backup(128<<10, holdfast.SetID{}, write{0, img})), img)
}

// Goal: no flipped bit of a map is restored from: it is found, named, and the set's other disks are not touched.
func TestFlippedMapIsFound(t *testing.T) {
	_, _, _, _ = damaged(t, "disk-0.map", func(l *lab, name string) {
		for off := int64(0); off < size(l, name); off += 7 {
			flip(t, l.pl.fss[0], name, off)
			l.p = l.pl.open(t)
			rep, err := l.p.Verify(background, pools.VerifyOptions{})
			if err != nil || len(rep.Damaged) == 0 || rep.Damaged[0].Disk != "disk.vhdx" || len(rep.Damaged[0].Extents) == 0 {
				t.Fatalf("byte %d: %+v, %v", off, rep, err)
			}
			if err := l.p.Close(); err != nil {
				t.Fatal(err)
			}
			flip(t, l.pl.fss[0], name, off)
		}
	})
}

// Goal: a data file in the place of another one is not taken for it.
func TestSwappedDataFileIsRefused(t *testing.T) {
	l, full, _, _ := damaged(t, "000001.data", func(l *lab, name string) {
		if err := l.pl.fss[0].Rename(strings.Replace(name, "000001", "000002", 1), name); err != nil {
			t.Fatal(err)
		}
	})
	if _, err := l.restore(full); holdfast.KindOf(err) != holdfast.Corrupt {
		t.Fatalf("restored: %v", err)
	}
}

// Goal: any flipped bit of a pool record is healed from its copy; with both damaged the path counts as lost.
func TestPoolRecordHasACopy(t *testing.T) {
	l, full, _, img := damaged(t, "disk-0.map", func(l *lab, _ string) { flip(t, l.pl.fss[0], poolName, 200) })
	l.same(full, img)
	flip(t, l.pl.fss[0], poolCopy, 100)
	if _, err := OpenOn(background, pools.Env{}, l.pl.stores(t), l.pl.id); holdfast.KindOf(err) != holdfast.Corrupt {
		t.Fatalf("open: %v", err)
	}
}
