package emu

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"time"

	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// Limits of blocks.
const (
	minBlock = 1
	maxBlock = 2 << 20
)

// A drive is one drive. Guarded by Library.mu.
type drive struct {
	lib  *Library
	unit *unit

	cart      *Cartridge
	loaded    bool
	failed    bool
	part, pos int
	key       *sealing
	allowed   bool // overwriting, once
	prevented map[string]bool
	alerts    []scsi.Alert
	deferred  *scsi.Sense
	addParts  int   // what the next FORMAT MEDIUM is to make
	firstMiB  int64 // size of partition 0 then
	compress  bool
	count     Count

	// The speed model: fill bytes were in the buffer at the moment then.
	fill int64
	then time.Time
	runs bool
}

// A sealing is a key in a drive.
type sealing struct {
	aead       cipher.AEAD
	key        []byte
	descriptor []byte
	mixed      bool
}

func (d *drive) alert(a scsi.Alert) {
	for _, b := range d.alerts {
		if a == b {
			return
		}
	}
	d.alerts = append(d.alerts, a)
}

// at returns the partition at hand, nil without a loaded medium.
func (d *drive) at() *part {
	if d.cart == nil || !d.loaded {
		return nil
	}
	return d.cart.parts[d.part]
}

// insert is the robot putting a cartridge in: it is loaded at once. A cleaning cartridge does its work and lets go.
func (d *drive) insert() {
	if d.prevented == nil {
		d.prevented = map[string]bool{}
	}
	c := d.cart
	if c.m.Cleaning > 0 {
		if c.uses == 0 {
			d.alert(scsi.AlertCleanExpired)
			return
		}
		c.uses--
		d.alerts = nil
		d.lib.log("drive %d cleaned", d.unit.u)
		return
	}
	d.load()
	d.unit.attention(scsi.CodeMediumChanged, "")
}

func (d *drive) load() {
	d.loaded, d.part, d.pos, d.runs, d.fill = true, 0, 0, false, 0
	d.cart.loads++
	d.count.Loads++
	d.lib.log("load %s in drive %d", d.cart.m.Barcode, d.unit.u)
}

func (d *drive) unload() {
	d.cart.flush()
	d.loaded, d.key, d.runs = false, nil, false
}

// run executes a drive's command.
func (d *drive) run(n *nexus, c scsi.Command) (outcome, time.Duration) {
	switch c.CDB[0] {
	case scsi.OpMaintenanceIn:
		return d.opcodes(c.CDB), 0
	case scsi.OpLogSense:
		return d.logSense(c.CDB), 0
	case scsi.OpReadBlockLimits:
		return good(0, 0x20, 0, 0, 0, minBlock), 0
	case scsi.OpModeSense6, scsi.OpModeSense10:
		return d.modeSense(c.CDB), 0
	case scsi.OpSecurityProtocolIn:
		return d.securityIn(c.CDB), 0
	case scsi.OpSecurityProtocolOut:
		return d.securityOut(n, c), 0
	case scsi.OpPreventAllow:
		if d.prevented == nil {
			d.prevented = map[string]bool{}
		}
		if c.CDB[4]&1 != 0 {
			d.prevented[n.initiator] = true
		} else {
			delete(d.prevented, n.initiator)
		}
		return good(), 0
	}
	switch {
	case d.failed:
		return check(scsi.HardwareError, scsi.CodeHardware), 0
	case d.cart == nil:
		return check(scsi.NotReady, scsi.CodeNoMedium), 0
	case d.cart.m.Cleaning > 0:
		return check(scsi.NotReady, scsi.CodeCleaning), 0
	case c.CDB[0] == scsi.OpLoadUnload:
		return d.loadUnload(c.CDB), 0
	case !d.loaded:
		return check(scsi.NotReady, 0x0402), 0 // initializing command required
	}
	return d.medium(c)
}

func (d *drive) loadUnload(cdb []byte) outcome {
	if cdb[4]&1 != 0 {
		if !d.loaded {
			d.load()
		}
		d.part, d.pos = 0, 0
		return good()
	}
	if len(d.prevented) > 0 {
		return check(scsi.IllegalRequest, scsi.CodeRemovalPrevented)
	}
	if d.loaded {
		d.unload()
	}
	return good()
}

// medium executes what needs a loaded medium.
func (d *drive) medium(c scsi.Command) (outcome, time.Duration) {
	cdb := c.CDB
	switch cdb[0] {
	case scsi.OpTestUnitReady:
		return good(), 0
	case scsi.OpRewind:
		d.settle()
		d.part, d.pos = 0, 0
		return good(), 0
	case scsi.OpRead6:
		return d.read(cdb)
	case scsi.OpWrite6:
		return d.write(cdb, c.Out)
	case scsi.OpWriteFilemarks6:
		return d.filemarks(cdb)
	case scsi.OpSpace6:
		return d.space(cdb[1]&7, int64(int32(uint32(cdb[2])<<24|uint32(cdb[3])<<16|uint32(cdb[4])<<8)>>8)), 0
	case scsi.OpSpace16:
		return d.space(cdb[1]&15, int64(be.Uint64(cdb[4:]))), 0
	case scsi.OpLocate16:
		return d.locate(cdb[1]&2 != 0, int(cdb[3]), be.Uint64(cdb[4:])), 0
	case scsi.OpLocate10:
		return d.locate(cdb[1]&2 != 0, int(cdb[8]), uint64(be.Uint32(cdb[3:]))), 0
	case scsi.OpReadPosition:
		return d.position(cdb[1] & 31), 0
	case scsi.OpErase6:
		if o, ok := d.writable(); !ok {
			return o, 0
		}
		d.at().cut(d.pos)
		d.settle()
		return good(), 0
	case scsi.OpFormatMedium:
		return d.format(cdb[2] & 15), 0
	case scsi.OpAllowOverwrite:
		d.allowed = true
		return good(), 0
	case scsi.OpModeSelect6:
		return d.modeSelect(c.Out, 4), 0
	case scsi.OpModeSelect10:
		return d.modeSelect(c.Out, 8), 0
	case scsi.OpReadAttribute:
		return d.readAttribute(cdb), 0
	case scsi.OpWriteAttribute:
		return d.writeAttribute(cdb, c.Out), 0
	}
	return check(scsi.IllegalRequest, scsi.CodeInvalidOpcode), 0
}

// settle brings what is buffered onto the medium, as a drive does before it moves.
func (d *drive) settle() {
	d.cart.flush()
	d.runs, d.fill = false, 0
}

// writable tells whether the position may be written to.
func (d *drive) writable() (outcome, bool) {
	p := d.at()
	switch {
	case d.cart.m.Protected:
		return check(scsi.DataProtect, scsi.CodeWriteProtected), false
	case d.cart.m.WORM && d.pos < len(p.objs):
		return check(scsi.DataProtect, scsi.CodeWORM), false
	}
	return outcome{}, true
}

func (d *drive) write(cdb, data []byte) (outcome, time.Duration) {
	n := int(cdb[2])<<16 | int(cdb[3])<<8 | int(cdb[4])
	p := d.at()
	if cdb[1] != 0 || n != len(data) || n > maxBlock {
		return badField, 0
	}
	if o, ok := d.writable(); !ok {
		return o, 0
	}
	if n == 0 {
		return good(), 0
	}
	if p.used(d.pos)+int64(n) > p.size {
		o := check(scsi.VolumeOverflow, scsi.CodeEndOfMedium)
		o.sense.EOM, o.sense.HasInfo, o.sense.Info = true, true, int64(n)
		return o, 0
	}
	p.cut(d.pos)
	o := object{data: bytes.Clone(data), end: p.used(d.pos) + int64(n)}
	if d.key != nil {
		var nonce [12]byte
		_, _ = rand.Read(nonce[:]) // never fails
		o.data = d.key.aead.Seal(nonce[:], nonce[:], data, nil)
		o.key = d.key
	}
	p.objs = append(p.objs, o)
	d.pos++
	d.cart.dirty = true
	d.count.Written += int64(n)
	return d.warning(), d.stream(int64(n))
}

// warning is good, or early warning near the end.
func (d *drive) warning() outcome {
	p := d.at()
	if p.size-p.used(d.pos) >= d.zone() {
		return good()
	}
	o := check(scsi.NoSense, scsi.CodeEndOfMedium)
	o.sense.EOM = true
	return o
}

func (d *drive) filemarks(cdb []byte) (outcome, time.Duration) {
	n := int(cdb[2])<<16 | int(cdb[3])<<8 | int(cdb[4])
	if cdb[1]&^1 != 0 {
		return badField, 0
	}
	p := d.at()
	if n > 0 {
		if o, ok := d.writable(); !ok {
			return o, 0
		}
		p.cut(d.pos)
	}
	for i := range n {
		if p.used(d.pos)+markCost > p.size {
			o := check(scsi.VolumeOverflow, scsi.CodeEndOfMedium)
			o.sense.EOM, o.sense.HasInfo, o.sense.Info = true, true, int64(n-i)
			return o, 0
		}
		p.objs = append(p.objs, object{mark: true, end: p.used(d.pos) + markCost})
		d.pos++
		d.cart.dirty = true
		d.count.Filemarks++
	}
	wait := time.Duration(0)
	if cdb[1]&1 == 0 {
		if d.lib.o.Rate > 0 {
			d.drain()
			wait = time.Duration(d.fill * int64(time.Second) / d.lib.o.Rate)
		}
		d.settle()
	}
	if n == 0 {
		return good(), wait
	}
	return d.warning(), wait
}

// drain moves the speed model to now, and counts a stop if the buffer has run empty.
func (d *drive) drain() {
	now := d.lib.o.Clock.Now()
	d.fill -= int64(float64(now.Sub(d.then)) / float64(time.Second) * float64(d.lib.o.Rate))
	if d.fill < 0 {
		if d.runs {
			d.count.Stops++
			d.runs = false
		}
		d.fill = 0
	}
	d.then = now
}

// stream puts n bytes into the buffer and returns how long the drive makes its user wait for room.
func (d *drive) stream(n int64) time.Duration {
	if d.lib.o.Rate == 0 {
		return 0
	}
	d.drain()
	d.fill += n
	if 2*d.fill >= d.lib.o.Buffer {
		d.runs = true // it starts with a half full buffer
	}
	if over := d.fill - d.lib.o.Buffer; over > 0 {
		return time.Duration(over * int64(time.Second) / d.lib.o.Rate)
	}
	return 0
}

func (d *drive) read(cdb []byte) (outcome, time.Duration) {
	n := int(cdb[2])<<16 | int(cdb[3])<<8 | int(cdb[4])
	if cdb[1]&1 != 0 { // fixed blocks, but the block length is 0
		return badField, 0
	}
	if n == 0 {
		return good(), 0
	}
	d.settle()
	p := d.at()
	if d.pos >= len(p.objs) {
		o := check(scsi.BlankCheck, scsi.CodeEndOfData)
		if p.torn {
			o = check(scsi.MediumError, scsi.CodeReadError)
		}
		o.sense.HasInfo, o.sense.Info = true, int64(n)
		return o, 0
	}
	obj := p.objs[d.pos]
	if obj.mark {
		d.pos++
		o := check(scsi.NoSense, scsi.CodeFilemark)
		o.sense.Filemark, o.sense.HasInfo, o.sense.Info = true, true, int64(n)
		return o, 0
	}
	data, o := d.open(obj)
	if o.status != scsi.Good {
		return o, 0
	}
	d.pos++
	d.count.Read += int64(len(data))
	if len(data) == n || cdb[1]&2 != 0 && len(data) < n {
		return outcome{data: data}, d.pace(len(data))
	}
	o = check(scsi.NoSense, scsi.CodeNone)
	o.sense.ILI, o.sense.HasInfo, o.sense.Info = true, true, int64(n-len(data))
	o.data = data[:min(n, len(data))]
	return o, d.pace(len(data))
}

// pace is how long reading n bytes takes.
func (d *drive) pace(n int) time.Duration {
	if d.lib.o.Rate == 0 {
		return 0
	}
	return time.Duration(int64(n) * int64(time.Second) / d.lib.o.Rate)
}

// open decrypts a block with the drive's key, as far as that is allowed.
func (d *drive) open(o object) ([]byte, outcome) {
	switch {
	case o.key == nil && (d.key == nil || d.key.mixed):
		return o.data, good()
	case o.key == nil:
		return nil, check(scsi.DataProtect, scsi.CodeNotEncrypted)
	case d.key == nil:
		return nil, check(scsi.DataProtect, scsi.CodeUnableToDecrypt)
	case !bytes.Equal(o.key.key, d.key.key):
		return nil, check(scsi.DataProtect, scsi.CodeWrongKey)
	}
	plain, err := d.key.aead.Open(nil, o.data[:12], o.data[12:], nil)
	if err != nil {
		return nil, check(scsi.MediumError, scsi.CodeReadError)
	}
	return plain, good()
}

// space moves by blocks or filemarks, or to the end of data.
func (d *drive) space(code byte, n int64) outcome {
	d.settle()
	p := d.at()
	if code == scsi.SpaceEndOfData {
		d.pos = len(p.objs)
		if p.torn {
			return check(scsi.MediumError, scsi.CodeEndOfDataMissing)
		}
		return good()
	}
	if code != scsi.SpaceBlocks && code != scsi.SpaceFilemarks {
		return badField
	}
	stop := func(k scsi.SenseKey, c scsi.Code, left int64) outcome {
		o := check(k, c)
		o.sense.HasInfo, o.sense.Info = true, left
		o.sense.Filemark, o.sense.EOM = c == scsi.CodeFilemark, c == scsi.CodeBeginning
		return o
	}
	for n > 0 {
		if d.pos >= len(p.objs) {
			if p.torn {
				return stop(scsi.MediumError, scsi.CodeReadError, n)
			}
			return stop(scsi.BlankCheck, scsi.CodeEndOfData, n)
		}
		mark := p.objs[d.pos].mark
		d.pos++
		if code == scsi.SpaceBlocks && mark {
			return stop(scsi.NoSense, scsi.CodeFilemark, n)
		}
		if code == scsi.SpaceBlocks || mark {
			n--
		}
	}
	for ; n < 0; n++ {
		for {
			if d.pos == 0 {
				return stop(scsi.NoSense, scsi.CodeBeginning, -n)
			}
			d.pos--
			mark := p.objs[d.pos].mark
			if code == scsi.SpaceBlocks && mark {
				return stop(scsi.NoSense, scsi.CodeFilemark, -n)
			}
			if code == scsi.SpaceBlocks || mark {
				break
			}
		}
	}
	return good()
}

func (d *drive) locate(change bool, partition int, object uint64) outcome {
	d.settle()
	if change {
		if partition >= len(d.cart.parts) {
			return badField
		}
		d.part, d.pos = partition, 0
	}
	p := d.at()
	d.count.Locates++
	if object < uint64(d.pos) {
		d.count.Backwards++
	}
	if object > uint64(len(p.objs)) {
		d.pos = len(p.objs)
		if p.torn {
			return check(scsi.MediumError, scsi.CodePositionError)
		}
		return check(scsi.BlankCheck, scsi.CodeEndOfData)
	}
	d.pos = int(object)
	return good()
}

func (d *drive) position(form byte) outcome {
	if form != scsi.PositionShort && form != scsi.PositionLong && form != scsi.PositionExtended {
		return badField
	}
	p := d.at()
	pos := scsi.Position{Partition: uint8(d.part), Object: uint64(d.pos), Beginning: d.pos == 0, End: p.size-p.used(d.pos) < d.zone(),
		Buffered: uint64(max(0, d.pos-p.flushed))}
	for _, o := range p.objs[:d.pos] {
		if o.mark && form == scsi.PositionLong {
			pos.Files++
		}
	}
	return good(pos.Encode(form)...)
}

func (d *drive) format(kind byte) outcome {
	switch {
	case d.cart.m.WORM || d.cart.m.Protected:
		return check(scsi.DataProtect, scsi.CodeWriteProtected)
	case d.part != 0 || d.pos != 0:
		return check(scsi.IllegalRequest, 0x3b18) // position is not at the beginning
	case kind > 2:
		return badField
	}
	n := 1
	if kind == 2 || kind == 1 && d.addParts > 0 {
		n = 2
	}
	d.cart.format(n, d.firstMiB)
	d.settle()
	return good()
}

func newSealing(e scsi.Encryption) *sealing {
	block, err := aes.NewCipher(e.Key)
	if err != nil {
		return nil
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil
	}
	return &sealing{aead: aead, key: bytes.Clone(e.Key), descriptor: bytes.Clone(e.Descriptor), mixed: e.Mixed}
}

// zone is how many bytes before the end of the partition early warning begins.
func (d *drive) zone() int64 { return min(d.cart.m.EarlyWarning, d.at().size/2) }
