package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance/notify/notifytest"
)

// TestAlarmsAndClearingsAreToldOnce raises every alarm that a small site can raise, has the daemon killed in between, clears them all, and
// looks at what a mail server and a webhook were told: each alarm once, each clearing once, to both.
func TestAlarmsAndClearingsAreToldOnce(t *testing.T) {
	s, rng := newSite(t), newRand(t)
	s.cli("pool", "set", "main", "--quota", fmt.Sprint(int64(1)<<40)) // so that how full the disk below is does not matter
	const key = "not-for-everybodys-eyes"
	keyFile := filepath.Join(s.dir, "hook.key")
	if err := os.WriteFile(keyFile, []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	hooked, at := notifytest.Hook(t, key)
	mailed, port := notifytest.Mailbox(t)
	s.cli("notify", "target", "add", "hook", "--kind", "webhook", "--set", "url="+at, "--set", "key_file="+keyFile, "--severity", "warning", "--flood", "1000/1")
	s.cli("notify", "target", "add", "ops", "--kind", "mail", "--set", "host=127.0.0.1", "--set", fmt.Sprintf("port=%d", port), "--set", "security=plain",
		"--set", "from=holdfast@example.org", "--set", "to=ops@example.org", "--severity", "warning", "--flood", "1000/1")
	s.cli("notify", "target", "test", "hook")
	s.cli("notify", "target", "test", "ops")
	var want []string
	expect := func(alarm, state string) {
		t.Helper()
		s.eventually(20*time.Second, alarm+" is "+state, func() bool { return hooked.Has(alarm+" "+state) && mailed.Has(alarm+" "+state) })
		want = append(want, alarm+" "+state)
	}
	s.newVM(rng, "db", 16<<20)
	s.backup("db")
	ids := s.ids()

	// A pool that fills.
	s.cli("pool", "set", "main", "--quota", fmt.Sprint(s.poolBytes()*100/85))
	expect("pool/"+ids.pool+"/full-80", "raised")
	s.cli("pool", "set", "main", "--quota", fmt.Sprint(s.poolBytes()))
	expect("pool/"+ids.pool+"/full-90", "raised")

	// A host that is gone, and the backup that fails because of it; the daemon dies in between and tells nothing again.
	s.agent.kill()
	expect("host/"+ids.host, "raised")
	s.daemon.kill()
	s.startDaemon()
	s.cli("pool", "set", "main", "--quota", fmt.Sprint(int64(1)<<40))
	expect("pool/"+ids.pool+"/full-90", "cleared")
	expect("pool/"+ids.pool+"/full-80", "cleared")
	if out, err := s.try("backup", "db", "--pool", "main"); err == nil {
		t.Fatalf("a backup without its host succeeded: %s", out)
	}
	expect("backup/"+ids.vm, "raised")
	s.startAgent()
	expect("host/"+ids.host, "cleared")
	s.backup("db")
	expect("backup/"+ids.vm, "cleared")

	// Nothing backed up for longer than is allowed.
	s.cli("notify", "set", "--stale", "1ms")
	expect("stale/"+ids.vm, "raised")
	s.cli("notify", "set", "--stale", "72h")
	expect("stale/"+ids.vm, "cleared")

	// Damage on the medium, and its end.
	undo := s.damage()
	if _, err := s.try("pool", "verify", "main"); err == nil {
		t.Fatal("damage was not found")
	}
	expect("pool/"+ids.pool+"/damage", "raised")
	undo()
	s.cli("pool", "verify", "main")
	expect("pool/"+ids.pool+"/damage", "cleared")

	s.daemon.stop() // with what waits
	hooked.Check(t, "webhook", want)
	mailed.Check(t, "mail", want)
	t.Logf("%d tellings, each once to both", len(want))
}

// siteIDs are the ids by which alarms are called.
type siteIDs struct{ pool, host, vm string }

func (s *site) ids() (ids siteIDs) {
	s.t.Helper()
	for what, id := range map[string]*string{"pool": &ids.pool, "host": &ids.host, "vm": &ids.vm} {
		var list []struct {
			ID string `json:"id"`
		}
		s.json(&list, what, "list")
		if len(list) != 1 {
			s.t.Fatalf("%d of %s", len(list), what)
		}
		*id = list[0].ID
	}
	return ids
}

// damage changes a byte in the middle of the pool's largest file; undo puts it back.
func (s *site) damage() (undo func()) {
	s.t.Helper()
	var largest string
	var size int64
	err := filepath.WalkDir(s.pool, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.Contains(path, "~") {
			return err
		}
		if i, err := d.Info(); err == nil && i.Size() > size {
			largest, size = path, i.Size()
		}
		return nil
	})
	if err != nil || size == 0 {
		s.t.Fatalf("no file in %s: %v", s.pool, err)
	}
	flip := func() {
		f, err := os.OpenFile(largest, os.O_RDWR, 0)
		if err != nil {
			s.t.Fatal(err)
		}
		defer f.Close()
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, size/2); err != nil {
			s.t.Fatal(err)
		}
		b[0] ^= 0x40
		if _, err := f.WriteAt(b, size/2); err != nil {
			s.t.Fatal(err)
		}
	}
	flip()
	return flip
}
