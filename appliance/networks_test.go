package appliance_test

import (
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
)

// shown returns a host as it is shown.
func (s *site) shown(name string) api.Host {
	s.t.Helper()
	h, err := s.svc().Host(s.t.Context(), name)
	s.ok(err)
	return h
}

// fresh returns bytes that do not compress, others for each seed.
func fresh(n int, seed byte) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1, seed}).Read(b)
	return b
}

func (s *site) setHost(name, network, egress string) {
	s.t.Helper()
	_, err := s.svc().SetHost(s.t.Context(), name, api.HostChange{DataNetwork: &network, Egress: &egress})
	s.ok(err)
}

// TestDataLeavesFromTheEgressAddress: the bytes of a backup come from the address that was chosen, and nothing else does; an address that the
// host does not have fails the task with what to do, while the host stays online; a restore goes the same way.
// Method: a proxy between agent and appliance counts bytes by the address they come from.
func TestDataLeavesFromTheEgressAddress(t *testing.T) {
	const size = 8 << 20
	s := newSite(t)
	s.vm("hv1", "db", size)
	id, proxy := s.far("hv1")
	s.run(id)
	s.state("hv1", api.HostOnline)
	was, seed := map[string]int64{}, byte(0)
	came := func(from string) (data, other int64) {
		now := proxy.From()
		for ip, n := range now {
			if ip == from {
				data += n - was[ip]
			} else {
				other += n - was[ip]
			}
		}
		was = now
		return data, other
	}
	backup := func(from string) {
		t.Helper()
		seed++
		s.write("hv1", "db", 0, 0, fresh(size, seed))
		if r := s.backup("db"); r.State != api.StateDone {
			t.Fatalf("%+v", r)
		}
		if data, other := came(from); data < size || from != "127.0.0.1" && other > size/8 {
			t.Errorf("%d bytes came from %s, %d from elsewhere", data, from, other)
		}
	}
	backup("127.0.0.1")
	s.setHost("hv1", "none", "127.0.0.2")
	backup("127.0.0.2")
	s.setHost("hv1", "none", "127.0.0.3")
	backup("127.0.0.3")

	s.setHost("hv1", "none", "192.0.2.77")
	r := s.backup("db")
	x := task(t, r, "db")
	if r.State != api.StateFailed || x.Error == nil || !strings.Contains(x.Error.Message, "no such address") || !strings.Contains(x.Error.Hint, "holdfast host set") {
		t.Errorf("%+v", x)
	}
	if h := s.shown("hv1"); h.State != api.HostOnline || h.Egress != "192.0.2.77" {
		t.Errorf("the host does not stay as it is: %+v", h)
	}

	s.setHost("hv1", "127.0.0.0/8", "127.0.0.4") // the appliance has an address there: past the proxy
	came("")
	seed++
	s.write("hv1", "db", 0, 0, fresh(size, seed))
	if r := s.backup("db"); r.State != api.StateDone {
		t.Fatalf("%+v", r)
	}
	if p := s.shown("hv1").DataPath; p == nil || p.From != "127.0.0.4" || p.To != "127.0.0.1" {
		t.Errorf("%+v", p)
	}
	if _, all := came(""); all > size/8 {
		t.Errorf("%d bytes went where the agent is enrolled", all)
	}

	s.setHost("hv1", "none", "127.0.0.5")
	r = s.follow(s.svc().Restore(t.Context(), api.RestoreSpec{Sets: []string{s.newest("db").ID}, Host: "hv1", Dir: s.path("lab-hv1/back"), Name: "back"}))
	if r.State != api.StateDone {
		t.Fatalf("%+v", r)
	}
	if data, _ := came("127.0.0.5"); data == 0 {
		t.Error("the restore did not ask from the chosen address")
	}
}

// TestDataGoesThroughTheDataNetwork: with a data network the agent picks its address in it and dials the appliance's there, IPv6 beside an
// enrolment over IPv4; a job's option overrides the host's network; names are resolved when a task begins.
func TestDataGoesThroughTheDataNetwork(t *testing.T) {
	s := &site{t: t, dir: t.TempDir(), clock: &shifted{}, log: &logBuffer{}, addr: "[::]:0", agents: map[string]func(){}}
	s.open()
	_, port, err := net.SplitHostPort(s.addr)
	s.ok(err)
	s.vm("hv1", "db", 4<<20)
	s.addr = net.JoinHostPort("127.0.0.1", port)
	s.online("hv1")
	check := func(what, network string, six bool) {
		t.Helper()
		spec := api.JobSpec{Name: what, Pool: "main", VMs: []string{"db"}}
		if network != "" {
			spec.Options = []string{"network=" + network}
		}
		_, err := s.svc().CreateJob(t.Context(), spec)
		s.ok(err)
		if r := s.follow(s.svc().RunJob(t.Context(), what, api.JobRun{})); r.State != api.StateDone {
			t.Fatalf("%s: %+v", what, r)
		}
		p := s.shown("hv1").DataPath
		if p == nil || (p.From == "::1") != six || (p.To == "::1") != six {
			t.Errorf("%s: %+v", what, p)
		}
	}
	check("routing", "", false)
	s.setHost("hv1", "::1/128", "none")
	check("host", "", true)
	check("override", "127.0.0.0/8", false)
	check("any", "any", false)
	_, err = s.svc().CreateNetwork(t.Context(), api.Network{Name: "backup", CIDR: "127.0.0.1/8"})
	s.ok(err)
	s.setHost("hv1", "backup", "none")
	check("named", "", false)
	s.setHost("hv1", "backup", "127.0.0.9")
	check("job's network without the host's address", "::1/128", true)

	_, err = s.svc().DeleteNetwork(t.Context(), "backup")
	refusedWith(t, err, holdfast.Busy, "hv1")
	_, err = s.svc().CreateJob(t.Context(), api.JobSpec{Name: "typo", Pool: "main", VMs: []string{"db"}, Options: []string{"network=bakcup"}})
	refusedWith(t, err, holdfast.NotExist, "bakcup")
	none, six := "none", "::1"
	_, err = s.svc().SetHost(t.Context(), "hv1", api.HostChange{Egress: &six})
	refusedWith(t, err, holdfast.Invalid, "not in the data network")
	_, err = s.svc().SetHost(t.Context(), "hv1", api.HostChange{DataNetwork: &none, Egress: &six})
	s.ok(err)
	x := task(t, s.backup("db"), "db")
	if x.Error == nil || !strings.Contains(x.Error.Message, "the other kind") || !strings.Contains(x.Error.Hint, "--data-network") {
		t.Errorf("%+v", x.Error)
	}
	s.setHost("hv1", "198.51.100.0/24", "none")
	x = task(t, s.backup("db"), "db")
	if x.Error == nil || !strings.Contains(x.Error.Message, "no address in the data network") {
		t.Errorf("%+v", x.Error)
	}
	_, err = s.svc().DeleteNetwork(t.Context(), "backup")
	s.ok(err)
}
