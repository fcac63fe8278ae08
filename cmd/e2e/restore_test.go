package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A labVM is a VM as `lab list --json` shows it.
type labVM struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	State string `json:"state"`
	Dir   string `json:"dir"`
	Disks []struct {
		Name string `json:"name"`
		Size int64  `json:"size"`
	} `json:"disks"`
	Skipped []json.RawMessage `json:"skipped"`
}

func (s *site) labVMs() map[string]labVM {
	s.t.Helper()
	var vms []labVM
	unmarshal(s.t, agentCmd(s.t, "lab", "list", s.lab, "--json"), &vms)
	out := map[string]labVM{}
	for _, v := range vms {
		out[v.Name] = v
	}
	return out
}

// TestRestoreSurvivesKills restores with the programs a person uses: the verdict first; over a VM that runs, shut down and with its identity kept; one disk;
// and with agent and daemon killed (signal 9) in the middle, after which the restore ends well in its run and nothing torn is left.
func TestRestoreSurvivesKills(t *testing.T) {
	s := newSite(t)
	rng := newRand(t)
	truth := make([]byte, 192<<20)
	for i := 0; i < len(truth); i += 8 {
		v := rng.Uint64()
		for j := range 8 {
			truth[i+j] = byte(v >> (8 * j))
		}
	}
	raw, disk := filepath.Join(s.dir, "db.raw"), filepath.Join(s.dir, "db.vhdx")
	if err := os.WriteFile(raw, truth, 0o600); err != nil {
		t.Fatal(err)
	}
	foreign(t, "qemu-img", "convert", "-O", "vhdx", "-o", "subformat=dynamic", raw, disk)
	agentCmd(t, "lab", "create", s.lab, "db", "--disk", disk)
	id := s.labVMs()["db"].ID
	s.cli("backup", "db", "--pool", "main")
	first := s.sets("--vm", "db")[0]

	over := []string{"restore", "vm", first.ID, "--host", "hv1", "--original", "--existing", "overwrite"}
	if out, err := s.try(append(over, "--yes")...); err == nil || !strings.Contains(err.Error(), "is running") {
		t.Errorf("over a VM that runs: %v\n%s", err, out)
	}
	if _, err := s.try(append(over, "--shutdown")...); err == nil || !strings.Contains(err.Error(), "will be lost") {
		t.Errorf("without being asked for: %v", err)
	}
	if out := s.cli(append(over, "--shutdown", "--preflight")...); !strings.Contains(out, "is shut down") || !strings.Contains(out, "will be lost") {
		t.Errorf("preflight prints\n%s", out)
	}
	s.cli("host", "set", "hv1", "--protected=true")
	if out := s.cli("host", "list"); !strings.Contains(out, "protected") {
		t.Error(out)
	}
	if _, err := s.try("restore", "vm", first.ID, "--host", "hv1", "--to", s.lab, "--name", "x"); err == nil || !strings.Contains(err.Error(), "protected") {
		t.Errorf("to a protected host: %v", err)
	}
	s.cli("host", "set", "hv1", "--protected=false")

	for _, who := range []string{"agent", "daemon"} {
		s.killedRestore(who, append(over, "--shutdown", "--start", "--yes"), filepath.Join(s.lab, "db"))
		s.killedRestore(who, []string{"restore", "vm", "--vm", "db", "--host", "hv1", "--to", filepath.Join(s.lab, "new-"+who), "--name", "new-" + who}, filepath.Join(s.lab, "new-"+who))
		vms := s.labVMs()
		if len(vms["new-"+who].Disks) != 1 || vms["db"].ID != id || vms["db"].State != "running" {
			t.Fatalf("after a killed %s the host has %+v", who, vms)
		}
		for _, name := range []string{"db", "new-" + who} {
			files, err := filepath.Glob(filepath.Join(s.lab, name, "*.vhdx"))
			if err != nil || len(files) != 1 {
				t.Fatalf("files of %s: %v, %v", name, files, err)
			}
			foreign(t, "qemu-img", "check", files[0])
			foreign(t, "qemu-img", "convert", "-O", "raw", files[0], raw)
			same(t, raw, truth)
		}
		if left, _ := filepath.Glob(filepath.Join(s.lab, ".restores", "*.json")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	next := s.backup("db")
	if next.Kind != "incremental" || next.Read > 1<<20 {
		t.Errorf("the line does not go on: %+v", next)
	}
	s.cli("restore", "disk", first.ID, "--disk", "0", "--host", "hv1", "--vm", "new-agent", "--new", filepath.Join(s.dir, "fast"))
	if vm := s.labVMs()["new-agent"]; len(vm.Disks) != 2 || len(vm.Skipped) > 0 {
		t.Errorf("with a further disk: %+v", vm)
	}
	var later struct {
		ID string `json:"id"`
	}
	s.json(&later, "restore", "vm", first.ID, "--host", "hv1", "--to", filepath.Join(s.lab, "later"), "--name", "later", "--at", time.Now().Add(time.Hour).Format(time.RFC3339))
	if out := s.cli("restore", "list"); !strings.Contains(out, later.ID) {
		t.Error(out)
	}
	s.cli("restore", "cancel", later.ID)
}

// killedRestore begins a restore, kills a program when bytes are being written in the folder, starts it again and waits for a good end.
func (s *site) killedRestore(who string, args []string, dir string) {
	s.t.Helper()
	before, err := filepath.Glob(filepath.Join(dir, "*.vhdx"))
	if err != nil {
		s.t.Fatal(err)
	}
	var run struct {
		ID    string `json:"id"`
		State string `json:"state"`
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
		Tasks []struct {
			Note string `json:"note"`
		} `json:"tasks"`
	}
	s.json(&run, append(args, "--detach")...)
	for deadline := time.Now().Add(20 * time.Second); ; {
		now, err := filepath.Glob(filepath.Join(dir, "*.vhdx"))
		if err != nil {
			s.t.Fatal(err)
		}
		if len(now) > len(before) {
			break
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("no file is made in %s\n%s", dir, tail(s.agent))
		}
	}
	if who == "agent" {
		s.agent.kill()
		s.startAgent()
	} else {
		s.daemon.kill()
		s.startDaemon()
		s.waitOnline("hv1")
	}
	id := run.ID
	s.eventually(40*time.Second, "the restore is over", func() bool {
		if s.tryJSON(&run, "run", "show", id) != nil {
			return false
		}
		return run.State != "running" && run.State != "queued"
	})
	if len(run.Tasks) != 1 || !strings.Contains(run.Tasks[0].Note, "begun anew") {
		s.t.Errorf("the kill of the %s did not meet the restore: %+v", who, run.Tasks)
	}
	if run.State != "done" {
		s.t.Fatalf("the restore with a killed %s ended as %s: %s\n%s", who, run.State, run.Error.Message, tail(s.agent))
	}
}
