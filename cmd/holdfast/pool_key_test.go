package main

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

// contains returns the files below dir that contain any of the words.
func contains(t *testing.T, dir string, words ...string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		for _, w := range words {
			if bytes.Contains(b, []byte(w)) {
				found = append(found, w+" in "+p)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// sheetKey returns the lines of the key on a recovery sheet.
func sheetKey(sheet string) string {
	var key strings.Builder
	for l := range strings.Lines(sheet) {
		f := strings.Fields(l)
		if len(f) == 2 && (len(f[0]) == 1 && strings.Count(f[1], "-") == 3 || f[0] == "key" && strings.Count(f[1], "-") == 1) {
			key.WriteString(strings.TrimSpace(l) + "\n")
		}
	}
	return key.String()
}

// Goal: an admin makes an encrypted pool, prints its sheet, rotates its keys, loses the appliance, and restores with the sheet alone.
// Method: the command line against real daemons.
func TestEncryptedPoolFromMakingToRecovery(t *testing.T) {
	s := newSite(t)
	code, o, out := s.call("", "pool", "create", "vault", "--path", s.path("vault"), "--encrypt")
	if out += o; code != cli.OK || !strings.Contains(out, "pool key sheet vault") || !strings.Contains(out, filepath.Join(s.data, "keys")) {
		t.Errorf("%s", out)
	}
	s.ok("backup", "db", "--pool", "vault")
	var sets []api.Set
	s.json(&sets, "set", "list", "--vm", "db")
	if found := contains(t, s.path("vault"), "disk.vhdx", `"disks"`, s.raw[:64], s.raw[2<<20:2<<20+64]); len(found) > 0 {
		t.Errorf("plaintext: %v", found)
	}
	sheet := s.ok("pool", "key", "sheet", "vault")
	var before, after api.PoolKeys
	s.json(&before, "pool", "key", "show", "vault")
	s.ok("pool", "key", "rotate", "vault")
	s.ok("pool", "key", "rotate", "vault", "--new-key-file", s.path("second.key"), "--reencrypt")
	s.json(&after, "pool", "key", "show", "vault")
	if len(before.Epochs) != 1 || len(after.Epochs) != 3 || after.File != s.path("second.key") || before.File == after.File || len(after.Wraps) != 2 {
		t.Errorf("before %+v\nafter %+v", before, after)
	}
	s.ok("pool", "gc", "vault")
	s.ok("pool", "scrub", "vault")
	s.ok("pool", "verify", "vault")
	s.ok("pool", "key", "rotate", "vault", "--new-passphrase-file", s.file("phrase", "a passphrase that is long enough\n"))
	s.fails(cli.Usage, "both", "pool", "key", "rotate", "vault", "--new-key-file", "a", "--new-passphrase-file", "b")
	s.fails(cli.Usage, "passphrase", "pool", "create", "weak", "--path", s.path("weak"), "--encrypt", "--passphrase-file", s.file("short", "secret\n"))
	s.fails(cli.Failed, "not encrypted", "pool", "key", "show", "main")

	// The appliance is gone. What is left is a copy of the pool's folder, and the sheet that was printed before the rotations.
	s.must(os.CopyFS(s.path("copy"), os.DirFS(s.path("vault"))))
	s.data = s.path("data2")
	d, err := appliance.Start(context.Background(), appliance.Config{Data: s.data, Listen: "127.0.0.1:0", Version: "test"})
	s.must(err)
	defer func() { s.must(d.Close()) }()
	s.ok("pool", "create", "main", "--path", s.path("pool2"))
	s.failsAs("encrypted", "pool", "import", "vault", "--path", s.path("copy"))
	s.failsAs("does not fit", "pool", "import", "vault", "--path", s.path("copy"), "--encrypt", "--key-file", s.path("second.key"))
	s.ok("pool", "import", "vault", "--path", s.path("copy"), "--encrypt", "--key-file", s.file("typed", strings.ToLower(sheetKey(sheet))))
	s.ok("catalog", "rebuild")
	got := s.path("back.raw")
	s.ok("restore", "export", sets[0].ID, "--disk", "0", "--format", "raw", "--output", got)
	if b, err := os.ReadFile(got); err != nil || string(b) != s.raw {
		t.Errorf("the disk differs (%v)", err)
	}
	s.ok("pool", "key", "rotate", "vault", "--new-key-file", s.path("third.key"))
	if fresh := s.ok("pool", "key", "sheet", "vault", "--new"); sheetKey(fresh) == sheetKey(sheet) || sheetKey(fresh) == "" {
		t.Errorf("the new sheet has the old key")
	}
}

func (s *site) file(name, content string) string {
	s.t.Helper()
	s.must(os.WriteFile(s.path(name), []byte(content), 0o600))
	return s.path(name)
}

// failsAs runs a command line that must fail, saying a word and what to do next.
func (s *site) failsAs(word string, args ...string) {
	s.t.Helper()
	code, _, errs := s.call("", args...)
	if code == cli.OK || !strings.Contains(errs, word) || strings.Count(strings.TrimSpace(errs), "\n") < 1 {
		s.t.Errorf("holdfast %s: exit %d:\n%s", strings.Join(args, " "), code, errs)
	}
}
