package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/nbd"
)

// The test binary is also the foreign processes: helperEnv says which one, the arguments follow in os.Args.
const helperEnv = "HOLDFAST_LAB_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case "nbd":
		exit(serveNBD(os.Args[1], os.Args[2], os.Args[3], os.Args[4]))
	case "agent":
		exit(churn(os.Args[1], os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serveNBD is a process that serves a disk until it is interrupted.
func serveNBD(dir, vm, no, sock string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	h, err := Open(dir)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(no)
	if err != nil {
		return err
	}
	d, err := h.OpenDisk(ctx, vm, n)
	if err != nil {
		return err
	}
	l, err := nbd.Listen("unix:" + sock)
	if err != nil {
		return errors.Join(err, d.Close())
	}
	fmt.Println("ready")
	srv := &nbd.Server{OnError: func(err error) { fmt.Fprintln(os.Stderr, err) }}
	return errors.Join(srv.Serve(ctx, l, nbd.Export{Backend: d, MultiConn: true}), d.Close())
}

// churn is an agent process that takes checkpoints and ends them, without end; with an odd seed it makes no reference points.
func churn(dir, vm, seed string) error {
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(n, 3))
	commits := n%2 == 0
	h, err := Open(dir)
	if err != nil {
		return err
	}
	ctx := context.Background()
	_, f, err := h.find(vm)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		cp, err := h.Checkpoint(ctx, f.ID, hv.CheckpointOptions{Tag: "holdfast:churn"})
		if err != nil {
			return err
		}
		pause(r.IntN(20))
		if commits && r.IntN(2) == 0 {
			_, err = cp.Commit(ctx)
		} else {
			err = cp.Discard(ctx)
		}
		if err != nil {
			return err
		}
		pause(r.IntN(20))
	}
}

// pause leaves a foreign writer some time.
func pause(ms int) {
	tick, _ := clock.System.After(time.Duration(ms) * time.Millisecond)
	<-tick
}

// A process is a helper that runs.
type process struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	errs  bytes.Buffer
}

func startHelper(t *testing.T, kind string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0], args...)}
	p.cmd.Env = append(os.Environ(), helperEnv+"="+kind)
	p.cmd.Stderr = &p.errs
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	p.lines = bufio.NewScanner(out)
	if !p.lines.Scan() || p.lines.Text() != "ready" {
		p.kill()
		t.Fatalf("the %s process is not ready: %s", kind, p.errs.String())
	}
	return p
}

func (p *process) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

func (p *process) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Fatalf("the process ended with %v: %s", err, p.errs.String())
	}
	if p.errs.Len() > 0 {
		t.Fatalf("the process complained: %s", p.errs.String())
	}
}

// socket returns a path short enough for a unix socket.
func socket(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// qemuIO writes with qemu-io, a program that knows nothing of us.
func qemuIO(t *testing.T, sock string, cmds ...string) {
	t.Helper()
	args := []string{"-f", "raw"}
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	out, err := exec.Command("qemu-io", append(args, "nbd+unix:///?socket="+sock)...).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("failed")) {
		t.Fatalf("qemu-io (of qemu-utils): %v\n%s", err, out)
	}
}

// makeDisk creates a VHDX with random bytes in its first eighth and returns its path.
func makeDisk(t *testing.T, size int64, seed uint64, o vhdx.CreateOptions) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), fmt.Sprintf("disk%d.vhdx", seed))
	o.Size = size
	if o.Subformat == "" {
		o.Subformat = "dynamic"
	}
	if o.BlockSize == 0 {
		o.BlockSize = 1 << 20
	}
	w, err := vhdx.Create(path, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(random(seed, int(size/8)), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	return path
}

func random(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func newLab(t *testing.T, disks ...string) (*Host, hv.VM) {
	t.Helper()
	h, err := Open(filepath.Join(t.TempDir(), "lab"))
	if err != nil {
		t.Fatal(err)
	}
	vm, err := h.NewVM(t.Context(), CreateOptions{Name: "vm", Disks: disks})
	if err != nil {
		t.Fatal(err)
	}
	return h, vm
}

func (h *Host) mustCheckpoint(t *testing.T, vm hv.VM) hv.Checkpoint {
	t.Helper()
	cp, err := h.Checkpoint(t.Context(), vm.ID, hv.CheckpointOptions{Tag: "holdfast:test"})
	if err != nil {
		t.Fatal(err)
	}
	return cp
}

func frozen(t *testing.T, d hv.FrozenDisk) []byte {
	t.Helper()
	r, err := d.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, d.Meta().Size)
	if _, err := r.ReadAt(b, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return b
}

// write changes a live disk in this process.
func write(t *testing.T, h *Host, vm hv.VM, no int, off int64, b []byte) {
	t.Helper()
	d, err := h.OpenDisk(t.Context(), vm.ID.String(), no)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// reference makes a first reference point and returns the tokens.
func tokensOf(t *testing.T, h *Host, vm hv.VM) map[holdfast.DiskID]string {
	t.Helper()
	tokens, err := h.mustCheckpoint(t, vm).Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// onlyOurFiles fails if a VM's folder holds more differencing disks than checkpoints need.
func onlyOurFiles(t *testing.T, h *Host, overlays int) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(h.dir, "vm", "*.avhdx"))
	if err != nil || len(names) != overlays {
		t.Errorf("differencing disks %v, want %d (%v)", names, overlays, err)
	}
}

// TestChangesCoverWhatWasWritten: 30 rounds of qemu-io writing through a process that serves the disk, while checkpoints are
// taken, ended by Commit or Discard. Changes must cover every byte that differs between the frozen images, and hardly more.
func TestChangesCoverWhatWasWritten(t *testing.T) {
	const size = 24 << 20
	seed := uint64(rand.Uint32())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 5))
	h, vm := newLab(t, makeDisk(t, size, 1, vhdx.CreateOptions{}))
	sock := socket(t)
	p := startHelper(t, "nbd", h.dir, "vm", "0", sock)
	token, base := "", make([]byte, size)
	var written, pieces int64 // since base
	for round := range 30 {
		var cmds []string
		for range 1 + r.IntN(6) {
			n := int64(512 * (1 + r.IntN(400)))
			off := 512 * r.Int64N((size-n)/512)
			verb := fmt.Sprintf("write -P %d", 1+r.IntN(255))
			switch r.IntN(8) {
			case 0:
				verb = "write -z"
			case 1:
				verb = "discard"
			}
			cmds = append(cmds, fmt.Sprintf("%s %d %d", verb, off, n))
			written += n
			pieces++
		}
		qemuIO(t, sock, cmds...)
		cp := h.mustCheckpoint(t, vm)
		d := cp.Disks()[0]
		now := frozen(t, d)
		if token == "" {
			if _, err := d.Changes(t.Context(), "lab-nonsense"); !errors.Is(err, hv.ErrTokenUnknown) {
				t.Fatalf("an unknown token: %v", err)
			}
		} else {
			es, err := d.Changes(t.Context(), token)
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			es = es.Normal(size)
			for _, gap := range (holdfast.Extents{{Off: 0, Len: size}}).Subtract(es) {
				if !bytes.Equal(base[gap.Off:gap.End()], now[gap.Off:gap.End()]) {
					t.Fatalf("round %d: a change in %v is not in the changes", round, gap)
				}
			}
			if limit := written*12/10 + pieces*2*granularity; es.Total() > limit {
				t.Fatalf("round %d: %d bytes said to be changed, %d written", round, es.Total(), written)
			}
		}
		// While the checkpoint is there, writing goes on; it belongs to the next round.
		off := 512 * r.Int64N(size/512-8)
		qemuIO(t, sock, fmt.Sprintf("write -P 77 %d 4096", off))
		if !bytes.Equal(now, frozen(t, d)) {
			t.Fatalf("round %d: a frozen disk changed", round)
		}
		if r.IntN(3) > 0 || token == "" {
			tokens, err := cp.Commit(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			token, base, written, pieces = tokens[d.Meta().ID], now, 4096, 1
		} else if err := cp.Discard(t.Context()); err != nil {
			t.Fatal(err)
		} else {
			written += 4096
			pieces++
		}
		if err := cp.Discard(t.Context()); err != nil {
			t.Errorf("Discard after the end: %v", err)
		}
	}
	p.stop(t)
	names, _ := filepath.Glob(filepath.Join(h.dir, "vm", "*.avhdx"))
	if len(names) != 0 {
		t.Errorf("left: %v", names)
	}
	if out, err := exec.Command("qemu-img", "check", filepath.Join(h.dir, "vm", "disk1.vhdx")).CombinedOutput(); err != nil {
		t.Errorf("qemu-img check: %v\n%s", err, out)
	}
}

// A writer writes pages of a disk through qemu-io and knows which writes were acknowledged.
type writer struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Scanner
	model []byte // what was acknowledged
	alt   map[int64]byte
	mu    sync.Mutex
}

const killPage = 4096

func startWriter(t *testing.T, sock string, model []byte, alt map[int64]byte) *writer {
	t.Helper()
	w := &writer{cmd: exec.Command("qemu-io", "-f", "raw", "nbd+unix:///?socket="+sock), model: model, alt: alt}
	var err error
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.end)
	w.out = bufio.NewScanner(out)
	return w
}

func (w *writer) end() {
	if w.cmd.ProcessState == nil {
		_ = w.cmd.Process.Kill()
		_ = w.cmd.Wait()
	}
}

// write writes a page and reports whether it was acknowledged. What was not may be there or not.
func (w *writer) write(page int64, v byte) bool {
	w.alt[page] = v
	if _, err := fmt.Fprintf(w.in, "write -P %d %d %d\n", v, page*killPage, killPage); err != nil {
		return false
	}
	for w.out.Scan() {
		line := w.out.Text()
		if strings.Contains(line, "failed") || strings.Contains(line, "rror") {
			return false
		}
		if strings.Contains(line, "wrote ") {
			copy(w.model[page*killPage:], bytes.Repeat([]byte{v}, killPage))
			delete(w.alt, page)
			return true
		}
	}
	return false
}

// TestKillNeverLosesAnAcknowledgedWrite kills the process that serves the disk, and an agent that takes checkpoints all the
// time, at random moments, 30 times each. Then every acknowledged write must be there, no checkpoint is left, and the changes
// since the last reference point cover what changed.
func TestKillNeverLosesAnAcknowledgedWrite(t *testing.T) {
	const size = 8 << 20
	seed := uint64(rand.Uint32())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 9))
	h, vm := newLab(t, makeDisk(t, size, 2, vhdx.CreateOptions{}), makeDisk(t, size, 3, vhdx.CreateOptions{Subformat: "fixed"}))
	cp := h.mustCheckpoint(t, vm)
	model := frozen(t, cp.Disks()[0])
	alt := make(map[int64]byte)
	if err := cp.Discard(t.Context()); err != nil {
		t.Fatal(err)
	}
	rounds := 30
	if n, err := strconv.Atoi(os.Getenv("HOLDFAST_SOAK")); err == nil {
		rounds = min(n, 10000)
	}
	leftovers, covered := 0, 0
	var base []byte // the disk at our reference point
	for round := range rounds {
		sock := socket(t)
		server := startHelper(t, "nbd", h.dir, "vm", "0", sock)
		agent := startHelper(t, "agent", h.dir, "vm", strconv.Itoa(round))
		w := startWriter(t, sock, model, alt)
		serverFirst := r.IntN(2) == 0
		for n := 1 + r.IntN(10); n > 0; n-- {
			if !w.write(r.Int64N(size/killPage), byte(1+r.IntN(255))) {
				t.Fatalf("round %d: a write failed before the kill: server: %s agent: %s", round, server.errs.String(), agent.errs.String())
			}
		}
		delay := time.Duration(r.IntN(100)) * time.Millisecond
		fire, _ := clock.System.After(delay)
		done := make(chan struct{})
		go func() {
			defer close(done)
			<-fire
			if serverFirst {
				server.kill()
			} else {
				agent.kill()
			}
		}()
		for n := 400; n > 0 && w.write(r.Int64N(size/killPage), byte(1+r.IntN(255))); n-- {
			select {
			case <-done:
				n = min(n, 5)
			default:
			}
		}
		<-done
		agent.kill()
		server.kill()
		w.end()
		left, ok := verifyAfterKill(t, h, vm, model, alt, &base, round)
		leftovers += left
		if ok {
			covered++
		}
	}
	t.Logf("%d of %d kills left a checkpoint behind; %d deltas compared", leftovers, rounds, covered)
}

// verifyAfterKill does what a restarted agent does, then compares. base is the disk at the reference point if its token is ours.
func verifyAfterKill(t *testing.T, h *Host, vm hv.VM, model []byte, alt map[int64]byte, base *[]byte, round int) (leftovers int, covered bool) {
	t.Helper()
	left, err := h.Leftovers(t.Context())
	if err != nil {
		t.Fatalf("round %d: %v", round, err)
	}
	for _, l := range left {
		if l.VM() != vm.ID || l.Tag() != "holdfast:churn" && l.Tag() != "" {
			t.Fatalf("round %d: leftover %v %q", round, l.VM(), l.Tag())
		}
		if err := l.Discard(t.Context()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	if again, err := h.Leftovers(t.Context()); err != nil || len(again) != 0 {
		t.Fatalf("round %d: %d leftovers after Discard: %v", round, len(again), err)
	}
	dir, f, err := h.find("vm")
	if err != nil {
		t.Fatal(err)
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "*.avhdx")); len(names) != 0 {
		t.Fatalf("round %d: after Discard: %v", round, names)
	}
	ref := f.Reference
	cp := h.mustCheckpoint(t, vm)
	d := cp.Disks()[0]
	got := frozen(t, d)
	for p := int64(0); p < int64(len(model))/killPage; p++ {
		a, b := model[p*killPage:(p+1)*killPage], got[p*killPage:(p+1)*killPage]
		if bytes.Equal(a, b) {
			continue
		}
		v, ok := alt[p]
		for i := range b {
			if b[i] != a[i] && (!ok || b[i] != v) {
				t.Fatalf("round %d: byte %d of page %d is %d; acknowledged was %d (%v, under way %d)", round, i, p, b[i], a[i], ok, v)
			}
		}
		copy(a, b) // the write that was under way, or a part of it, is there: from now on it must stay
	}
	clear(alt)
	if ref != nil {
		es, err := d.Changes(t.Context(), ref.Disks[d.Meta().ID].Token)
		if err != nil {
			t.Fatalf("round %d: changes: %v", round, err)
		}
		if covered = *base != nil && round%2 == 1; covered {
			for _, gap := range (holdfast.Extents{{Off: 0, Len: int64(len(got))}}).Subtract(es.Normal(int64(len(got)))) {
				if !bytes.Equal((*base)[gap.Off:gap.End()], got[gap.Off:gap.End()]) {
					t.Fatalf("round %d: a change in %v is not in the changes", round, gap)
				}
			}
		}
	}
	if _, err := cp.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	*base = got
	if names, _ := filepath.Glob(filepath.Join(dir, "*.avhdx")); len(names) != 0 {
		t.Fatalf("round %d: left %v", round, names)
	}
	return len(left), covered
}

// TestFilesThatNothingNamesAreLeftovers: an owner killed right before or after it switched vm.json leaves a differencing disk that no
// checkpoint has.
func TestFilesThatNothingNamesAreLeftovers(t *testing.T) {
	h, vm := newLab(t, makeDisk(t, 1<<20, 1, vhdx.CreateOptions{}))
	dir, f, err := h.find("vm")
	if err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(dir, overlayName(f.Disks[0].Name, holdfast.NewID()))
	if _, err := createOverlay(stray, filepath.Join(dir, f.Disks[0].Path)); err != nil {
		t.Fatal(err)
	}
	left, err := h.Leftovers(t.Context())
	if err != nil || len(left) != 1 || left[0].VM() != vm.ID {
		t.Fatalf("leftovers %v, %v", left, err)
	}
	if err := left[0].Discard(t.Context()); err != nil {
		t.Fatal(err)
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "*.avhdx")); len(names) != 0 {
		t.Fatalf("left %v", names)
	}
	if left, err := h.Leftovers(t.Context()); err != nil || len(left) != 0 {
		t.Fatalf("leftovers %v, %v", left, err)
	}
}
