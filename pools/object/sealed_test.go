package object

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/dedup"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

// Goal: an encrypted pool in a bucket, or in a stripe of buckets, shows nothing that was planted, in no byte and no name, before and after
// a rotation of its keys; and everything restores.
func TestNothingPlantedShows(t *testing.T) {
	t.Parallel()
	y := newStripeYard(t, "sealed", true)
	planted := []string{"IBAN DE02 1203 0000 0000 2020 51 ", labVM, labDisk}
	img := bytes.Repeat([]byte(planted[0]), 8000)[:256<<10]
	key := seal.NewKey()
	for _, s := range []spot{y.spot(y.server.URL), y.stripe(y.server.URL)} {
		s.c.Encryption = dedup.Encryption{Encryption: dedup.EncryptKeyFile, KeyFile: "the-key"}
		s.env.Secrets = func(string) ([]byte, error) { return key.KeyFile(), nil }
		s.create(t)
		l := newLab(t, s.open(t))
		size := int64(len(img))
		first := l.must(l.backup(size, holdfast.SetID{}, 0, img))
		if _, err := l.p.(*Pool).RotateKeys(background, seal.Rotation{Now: time.Now()}); err != nil {
			t.Fatalf("rotate: %v", err)
		}
		second := l.must(l.backup(size, first, 0, []byte(strings.Repeat(planted[0], 500)+"x")))
		if err := l.p.(*Pool).Hold(background, second, time.Now().Add(time.Hour), "compliance"); err != nil {
			t.Fatalf("hold: %v", err)
		}
		for _, n := range []string{"keys"} {
			names, err := l.p.(*Pool).pl.retry(l.p.(*Pool).pl.members[0]).List(background, n)
			if err != nil || len(names) == 0 {
				t.Fatalf("%s: %q, %v", n, names, err)
			}
			held, err := l.p.(*Pool).pl.members[0].s.Retention(background, names[0])
			if err != nil || held.Until.Before(time.Now().Add(50*time.Minute)) {
				t.Errorf("the keyring is kept until %v: %v", held.Until, err)
			}
		}
		l.close()
		l.p = s.open(t)
		l.same(first, img)
		l.close()
	}
	err := filepath.WalkDir(y.server.Root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, p := range planted {
			if bytes.Contains(b, []byte(p)) || strings.Contains(path, p) {
				t.Errorf("%s shows %q", path, p)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
