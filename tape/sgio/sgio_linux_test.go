package sgio

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// TestHeaderIsLaidOutAsTheKernelReadsIt: offsets of struct sg_io_hdr where pointers have 8 bytes, and where they have 4.
func TestHeaderIsLaidOutAsTheKernelReadsIt(t *testing.T) {
	var h header
	p := unsafe.Sizeof(uintptr(0))
	wide := p == 8
	pick := func(on64, on32 uintptr) uintptr {
		if wide {
			return on64
		}
		return on32
	}
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"interface_id", unsafe.Offsetof(h.interfaceID), 0}, {"dxfer_direction", unsafe.Offsetof(h.direction), 4}, {"cmd_len", unsafe.Offsetof(h.cmdLen), 8},
		{"mx_sb_len", unsafe.Offsetof(h.maxSense), 9}, {"iovec_count", unsafe.Offsetof(h.iovecs), 10}, {"dxfer_len", unsafe.Offsetof(h.dataLen), 12},
		{"dxferp", unsafe.Offsetof(h.data), 16}, {"cmdp", unsafe.Offsetof(h.cmd), 16 + p}, {"sbp", unsafe.Offsetof(h.sense), 16 + 2*p},
		{"timeout", unsafe.Offsetof(h.timeout), 16 + 3*p}, {"flags", unsafe.Offsetof(h.flags), 20 + 3*p}, {"pack_id", unsafe.Offsetof(h.packID), 24 + 3*p},
		{"usr_ptr", unsafe.Offsetof(h.user), pick(56, 40)}, {"status", unsafe.Offsetof(h.status), pick(64, 44)}, {"sb_len_wr", unsafe.Offsetof(h.senseLen), pick(67, 47)},
		{"host_status", unsafe.Offsetof(h.hostStatus), pick(68, 48)}, {"driver_status", unsafe.Offsetof(h.driverStatus), pick(70, 50)}, {"resid", unsafe.Offsetof(h.resid), pick(72, 52)},
		{"duration", unsafe.Offsetof(h.duration), pick(76, 56)}, {"info", unsafe.Offsetof(h.info), pick(80, 60)}, {"size", unsafe.Sizeof(h), pick(88, 64)},
	} {
		if c.got != c.want {
			t.Errorf("%s is at %d, the kernel reads it at %d", c.name, c.got, c.want)
		}
	}
}

// device returns a Device whose kernel is a function.
func device(t *testing.T, kernel func(h *header) error) *Device {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "sg"))
	if err != nil {
		t.Fatal(err)
	}
	d := &Device{path: "/dev/sg7", f: f, ioctl: func(_, request uintptr, arg unsafe.Pointer) error {
		if request != ioctlIO {
			return unix.ENOTTY
		}
		return kernel((*header)(arg))
	}}
	t.Cleanup(func() {
		if err := d.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return d
}

// TestCommandsReachTheKernelAsTheyAre: the block, the direction, the length, the bytes and the time limit; and back the bytes, less the residual.
func TestCommandsReachTheKernelAsTheyAre(t *testing.T) {
	var seen header
	var cdb, out []byte
	d := device(t, func(h *header) error {
		seen = *h
		cdb = bytes.Clone(unsafe.Slice((*byte)(h.cmd), h.cmdLen))
		switch h.direction {
		case dirOut:
			out = bytes.Clone(unsafe.Slice((*byte)(h.data), h.dataLen))
		case dirIn:
			h.resid = int32(h.dataLen) - int32(copy(unsafe.Slice((*byte)(h.data), h.dataLen), "answer"))
		}
		return nil
	})
	r, err := d.Exec(context.Background(), scsi.Command{CDB: scsi.Write(5), Out: []byte("hello"), Timeout: 1500 * time.Microsecond})
	if err != nil || r.Status != scsi.Good || string(out) != "hello" || !bytes.Equal(cdb, scsi.Write(5)) || seen.interfaceID != 'S' || seen.timeout != 2 || seen.maxSense != senseRoom {
		t.Errorf("%+v, %v, %q, %x, %+v", r, err, out, cdb, seen)
	}
	in := make([]byte, 20)
	r, err = d.Exec(context.Background(), scsi.Command{CDB: scsi.Read(20), In: in})
	if err != nil || r.In != 6 || string(in[:6]) != "answer" || seen.timeout != milliseconds(scsi.Timeout(scsi.Read(20))) {
		t.Errorf("%+v, %v, %q", r, err, in)
	}
	r, err = d.Exec(context.Background(), scsi.Command{CDB: scsi.Rewind()})
	if err != nil || r.In != 0 || seen.direction != dirNone || seen.data != nil {
		t.Errorf("%+v, %v, %+v", r, err, seen)
	}
	for _, c := range []scsi.Command{{}, {CDB: make([]byte, 17)}, {CDB: scsi.Read(1), In: in, Out: in}, {CDB: scsi.Read(1), In: make([]byte, maxData+1)}} {
		if _, err := d.Exec(context.Background(), c); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("%d bytes, %d in, %d out: %v", len(c.CDB), len(c.In), len(c.Out), err)
		}
	}
}

// TestWhatTheKernelSaysBecomesAnAnswerOrAnError: the device's word is a Result; where there is none, nobody may take it for one.
func TestWhatTheKernelSaysBecomesAnAnswerOrAnError(t *testing.T) {
	attention := []byte{0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0}
	for _, c := range []struct {
		name         string
		host, driver uint16
		status       uint8
		sense        bool
		resid        int32
		errno        error
		want         scsi.Status
		in           int
		kind         holdfast.Kind
	}{
		{name: "good", want: scsi.Good, in: 8},
		{name: "good, some bytes", resid: 3, want: scsi.Good, in: 5},
		{name: "a residual out of range", resid: 99, want: scsi.Good},
		{name: "a residual below zero", resid: -5, want: scsi.Good, in: 8},
		{name: "unit attention", status: 2, driver: 8, sense: true, want: scsi.CheckCondition, in: 8},
		{name: "unit attention, kernels that say nothing of sense", status: 2, sense: true, want: scsi.CheckCondition, in: 8},
		{name: "sense without a status", driver: 8, sense: true, want: scsi.CheckCondition, in: 8},
		{name: "busy", status: 8, want: scsi.BusyStatus, in: 8},
		{name: "reservation conflict", status: 0x18, want: scsi.ReservationConflict, in: 8},
		{name: "timeout", host: hostTimeout, kind: holdfast.Offline},
		{name: "timeout by the driver", driver: driverTimeout, kind: holdfast.Offline},
		{name: "path gone", host: hostNoConnect, kind: holdfast.Offline},
		{name: "reset", host: hostReset, kind: holdfast.Transient},
		{name: "reset, with the status of before", host: hostReset, status: 2, sense: true, kind: holdfast.Transient},
		{name: "bus busy", host: hostBusBusy, kind: holdfast.Transient},
		{name: "adapter error", host: 7, kind: holdfast.Transient},
		{name: "device gone", errno: unix.ENODEV, kind: holdfast.Offline},
		{name: "too much at once", errno: unix.EINVAL, kind: holdfast.Unsupported},
		{name: "queue full", errno: unix.EDOM, kind: holdfast.Transient},
	} {
		d := device(t, func(h *header) error {
			h.hostStatus, h.driverStatus, h.status, h.resid = c.host, c.driver, c.status, c.resid
			if c.sense {
				h.senseLen = uint8(copy(unsafe.Slice((*byte)(h.sense), h.maxSense), attention))
			}
			return c.errno
		})
		r, err := d.Exec(context.Background(), scsi.Command{CDB: scsi.Read(8), In: make([]byte, 8)})
		if c.kind != 0 {
			if err == nil || holdfast.KindOf(err) != c.kind {
				t.Errorf("%s: %+v, %v", c.name, r, err)
			}
			continue
		}
		if err != nil || r.Status != c.want || r.In != c.in || c.sense != bytes.Equal(r.Sense, attention) {
			t.Errorf("%s: %+v, %v", c.name, r, err)
		}
	}
}

// TestCancellingLetsGoOfALongCommand, whose device goes on; one with a buffer is waited for, since the kernel still writes to it.
func TestCancellingLetsGoOfALongCommand(t *testing.T) {
	entered, finish, ended := make(chan bool), make(chan bool), make(chan bool, 1)
	d := device(t, func(*header) error {
		entered <- true
		<-finish
		ended <- true
		return nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	outcome := make(chan error)
	go func() {
		_, err := d.Exec(ctx, scsi.Command{CDB: scsi.LoadUnload(true)})
		outcome <- err
	}()
	<-entered
	cancel()
	if err := <-outcome; holdfast.KindOf(err) != holdfast.Cancelled {
		t.Errorf("%v", err)
	}
	if err := d.Close(); err != nil { // the file stays open until the kernel has answered
		t.Error(err)
	}
	finish <- true
	<-ended
	if _, err := d.Exec(context.Background(), scsi.Command{CDB: scsi.Rewind()}); holdfast.KindOf(err) != holdfast.Offline {
		t.Errorf("after closing: %v", err)
	}

	d = device(t, func(h *header) error {
		entered <- true
		<-finish
		copy(unsafe.Slice((*byte)(h.data), h.dataLen), "late")
		return nil
	})
	ctx, cancel = context.WithCancel(context.Background())
	in := make([]byte, 4)
	go func() {
		_, err := d.Exec(ctx, scsi.Command{CDB: scsi.Read(4), In: in})
		outcome <- err
	}()
	<-entered
	cancel()
	finish <- true
	if err := <-outcome; err != nil || string(in) != "late" {
		t.Errorf("%v, %q", err, in)
	}
	if _, err := d.Exec(ctx, scsi.Command{CDB: scsi.Rewind()}); holdfast.KindOf(err) != holdfast.Cancelled {
		t.Errorf("cancelled before: %v", err)
	}
}

// TestWhatIsNoDeviceIsRefused with what to do about it.
func TestWhatIsNoDeviceIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, k := range map[string]holdfast.Kind{file: holdfast.Invalid, os.DevNull: holdfast.Invalid, file + "2": holdfast.NotExist} {
		if _, err := Open(path); err == nil || holdfast.KindOf(err) != k || holdfast.HintOf(err) == "" {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestDevicesAreListedInOrder from the kernel's tree; what vanishes meanwhile is left out.
func TestDevicesAreListedInOrder(t *testing.T) {
	dev := func(n, kind, vendor, model string) fstest.MapFS {
		at := "class/scsi_generic/" + n + "/device/"
		return fstest.MapFS{at + "type": {Data: []byte(kind + "\n")}, at + "vendor": {Data: []byte(vendor + "\n")}, at + "model": {Data: []byte(model + "  \n")}}
	}
	sys := fstest.MapFS{"class/scsi_generic/sg5/other": {}}
	for _, m := range []fstest.MapFS{dev("sg10", "8", "IBM     ", "3573-TL"), dev("sg2", "1", "IBM", "ULT3580-TD8"), dev("sg1", "0", "ATA", "disk")} {
		for k, v := range m {
			sys[k] = v
		}
	}
	got, err := list(sys)
	want := []Found{{"/dev/sg1", scsi.TypeDisk, "ATA", "disk"}, {"/dev/sg2", scsi.TypeTape, "IBM", "ULT3580-TD8"}, {"/dev/sg10", scsi.TypeChanger, "IBM", "3573-TL"}}
	if err != nil || len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := list(fstest.MapFS{}); err != nil || got != nil {
		t.Errorf("no driver: %+v, %v", got, err)
	}
	if _, err := List(); err != nil {
		t.Errorf("this machine: %v", err)
	}
}
