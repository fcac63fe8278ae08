package sgio

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// Requests of the driver.
const (
	ioctlSetReserved = 0x2275
	ioctlVersion     = 0x2282
	ioctlIO          = 0x2285
)

const (
	reserved   = 1 << 20 // bytes that the driver keeps for this file: our largest block
	minVersion = 30000   // of the driver: the first with this structure
	senseRoom  = 252
	maxData    = 16 << 20
)

// Directions of data.
const (
	dirNone = -1
	dirOut  = -2
	dirIn   = -3
)

// header is struct sg_io_hdr of <scsi/sg.h>, field by field; the C compiler and this one lay it out alike.
type header struct {
	interfaceID    int32
	direction      int32
	cmdLen         uint8
	maxSense       uint8
	iovecs         uint16
	dataLen        uint32
	data           unsafe.Pointer
	cmd            unsafe.Pointer
	sense          unsafe.Pointer
	timeout        uint32 // milliseconds
	flags          uint32
	packID         int32
	user           unsafe.Pointer
	status         uint8
	maskedStatus   uint8
	msgStatus      uint8
	senseLen       uint8
	hostStatus     uint16
	driverStatus   uint16
	resid          int32
	duration, info uint32
}

// What the host adapter's driver says of a command (the kernel's DID_ numbers).
const (
	hostNoConnect   = 0x01
	hostBusBusy     = 0x02
	hostTimeout     = 0x03
	hostBadTarget   = 0x04
	hostAbort       = 0x05
	hostReset       = 0x08
	driverTimeout   = 0x06
	driverMask      = 0x07 // 0x08 says that there is sense data
	driverNoMessage = 0x00
)

// A Device is an open device file: a scsi.Transport.
type Device struct {
	path  string
	f     *os.File
	ioctl func(fd uintptr, request uintptr, arg unsafe.Pointer) error // the kernel's; tests have another one
}

// Open opens a device file.
func Open(path string) (*Device, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, classify(path, err)
	}
	d := &Device{path: path, f: f, ioctl: ioctl}
	var version int32
	err = d.control(ioctlVersion, unsafe.Pointer(&version))
	if err == nil && version < minVersion {
		err = unix.ENOTTY
	}
	if err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
			return nil, holdfast.Errorf(holdfast.Invalid, op, "%s is no SCSI generic device", path).Advise("name the /dev/sgN of the device; list them: holdfast tape library scan sg:all")
		}
		return nil, classify(path, err)
	}
	size := int32(reserved)
	_ = d.control(ioctlSetReserved, unsafe.Pointer(&size)) // without it the driver allocates for each command
	return d, nil
}

// List returns the SCSI devices of this machine without touching them.
func List() ([]Found, error) { return list(os.DirFS("/sys")) }

// Close gives the file back; a command under way keeps it open until the kernel has answered.
func (d *Device) Close() error {
	if err := d.f.Close(); err != nil {
		return classify(d.path, err)
	}
	return nil
}

func ioctl(fd, request uintptr, arg unsafe.Pointer) error {
	for {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg)); e != unix.EINTR || request == ioctlIO {
			if e != 0 {
				return e
			}
			return nil
		}
	}
}

// control holds the file open during a request.
func (d *Device) control(request uintptr, arg unsafe.Pointer) error {
	raw, err := d.f.SyscallConn()
	if err != nil {
		return err
	}
	var out error
	if raw.Control(func(fd uintptr) { out = d.ioctl(fd, request, arg) }) != nil {
		return fs.ErrClosed // the only reason why it does not call
	}
	return out
}

// Exec implements scsi.Transport. Cancelling lets go at once of a command that has no data; the device goes on with it. One with data is waited
// for, since its buffers are the kernel's until it ends, within the command's time limit and what the kernel needs to abort it.
func (d *Device) Exec(ctx context.Context, c scsi.Command) (scsi.Result, error) {
	if len(c.CDB) == 0 || len(c.CDB) > 16 || len(c.In) > 0 && len(c.Out) > 0 || max(len(c.In), len(c.Out)) > maxData {
		return scsi.Result{}, holdfast.Errorf(holdfast.Invalid, op, "a command of %d bytes with %d bytes out and %d in", len(c.CDB), len(c.Out), len(c.In))
	}
	if err := ctx.Err(); err != nil {
		return scsi.Result{}, holdfast.Errorf(holdfast.Cancelled, op, "%w", err)
	}
	if len(c.In) > 0 || len(c.Out) > 0 || ctx.Done() == nil {
		return d.exec(c)
	}
	type answer struct {
		r   scsi.Result
		err error
	}
	c.CDB = append([]byte(nil), c.CDB...)
	done := make(chan answer, 1)
	go func() {
		r, err := d.exec(c)
		done <- answer{r, err}
	}()
	select {
	case a := <-done:
		return a.r, a.err
	case <-ctx.Done():
		return scsi.Result{}, holdfast.Errorf(holdfast.Cancelled, op, "%s: not waited for: %w", scsi.Name(c.CDB), ctx.Err())
	}
}

func (d *Device) exec(c scsi.Command) (scsi.Result, error) {
	var sense [senseRoom]byte
	h := &header{interfaceID: 'S', direction: dirNone, cmdLen: uint8(len(c.CDB)), maxSense: senseRoom, timeout: milliseconds(c.Limit())}
	var pin runtime.Pinner // the kernel reads and writes these until it answers
	defer pin.Unpin()
	data := c.In
	switch {
	case len(c.In) > 0:
		h.direction = dirIn
	case len(c.Out) > 0:
		h.direction, data = dirOut, c.Out
	}
	if len(data) > 0 {
		h.data, h.dataLen = unsafe.Pointer(&data[0]), uint32(len(data))
		pin.Pin(&data[0])
	}
	h.cmd, h.sense = unsafe.Pointer(&c.CDB[0]), unsafe.Pointer(&sense[0])
	pin.Pin(&c.CDB[0])
	pin.Pin(&sense[0])
	pin.Pin(h)
	if err := d.control(ioctlIO, unsafe.Pointer(h)); err != nil {
		if (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOMEM)) && len(data) > 0 {
			return scsi.Result{}, holdfast.Errorf(holdfast.Unsupported, op, "%s: %s with %d bytes: %w", d.path, scsi.Name(c.CDB), len(data), err).
				Advise("the host adapter may not pass as much in one piece: see max_sectors_kb of the device's queue")
		}
		return scsi.Result{}, classify(d.path, err)
	}
	return d.result(h, c, sense[:])
}

// result tells a device's answer from none.
func (d *Device) result(h *header, c scsi.Command, sense []byte) (scsi.Result, error) {
	r := scsi.Result{Status: scsi.Status(h.status & 0xfe)}
	n := min(int(h.senseLen), len(sense))
	lost := func(k holdfast.Kind, what string) error {
		return holdfast.Errorf(k, op, "%s: no answer to %s: %s (host %02xh, driver %02xh)", d.path, scsi.Name(c.CDB), what, h.hostStatus, h.driverStatus).
			Advise("look at the kernel's log and the cabling; what became of the command is not known")
	}
	switch {
	case h.hostStatus == 0 && h.driverStatus&driverMask == driverNoMessage:
	case h.hostStatus == hostTimeout || h.driverStatus&driverMask == driverTimeout:
		return scsi.Result{}, lost(holdfast.Offline, "it took too long and was aborted")
	case h.hostStatus == hostNoConnect || h.hostStatus == hostBadTarget:
		return scsi.Result{}, lost(holdfast.Offline, "the device does not answer")
	case h.hostStatus == hostReset || h.hostStatus == hostAbort:
		return scsi.Result{}, lost(holdfast.Transient, "the device was reset")
	case h.hostStatus == hostBusBusy:
		return scsi.Result{}, lost(holdfast.Transient, "the bus is busy")
	default:
		return scsi.Result{}, lost(holdfast.Transient, "the host adapter failed")
	}
	if r.Status == scsi.Good && n > 0 && h.driverStatus != 0 {
		r.Status = scsi.CheckCondition // some adapters give the sense without the status that goes with it
	}
	if r.Status == scsi.CheckCondition {
		r.Sense = append([]byte(nil), sense[:n]...)
	}
	r.In = max(0, len(c.In)-max(0, int(h.resid)))
	return r, nil
}

// milliseconds rounds up, so that no limit becomes none.
func milliseconds(d time.Duration) uint32 {
	ms := (d + time.Millisecond - 1) / time.Millisecond
	return uint32(min(max(ms, 1), math.MaxInt32))
}

// classify gives an error of the system its Kind.
func classify(path string, err error) error {
	k, hint := holdfast.Internal, ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		k, hint = holdfast.NotExist, "is the device connected, and the sg module loaded (modprobe sg)?"
	case errors.Is(err, fs.ErrPermission):
		k, hint = holdfast.Permission, "device files of SCSI are root's, and of the group tape"
	case errors.Is(err, unix.EBUSY):
		k, hint = holdfast.Busy, "another program has the device for itself"
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO), errors.Is(err, fs.ErrClosed):
		k = holdfast.Offline
	case errors.Is(err, unix.EDOM), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		k = holdfast.Transient
	}
	e := holdfast.Errorf(k, op, "%s: %w", path, err)
	if hint != "" {
		return e.Advise("%s", hint)
	}
	return e
}
