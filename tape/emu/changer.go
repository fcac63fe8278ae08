package emu

import "github.com/holdfast-backup/holdfast/tape/scsi"

// place returns where an element keeps its cartridge, and its drive if it is one.
func (l *Library) place(addr uint16) (**Cartridge, *drive) {
	a := int(addr)
	switch {
	case a >= AddrSlot && a < AddrSlot+l.o.Slots:
		return &l.slots[a-AddrSlot], nil
	case a >= AddrDrive && a < AddrDrive+len(l.drives):
		d := l.drives[a-AddrDrive]
		return &d.cart, d
	case a >= AddrExport && a < AddrExport+l.o.Exports:
		return &l.slots[l.o.Slots+a-AddrExport], nil
	}
	return nil, nil
}

// changer executes a changer's command.
func (l *Library) changer(c scsi.Command) outcome {
	switch c.CDB[0] {
	case scsi.OpTestUnitReady, scsi.OpInitElementStatus, scsi.OpInitElementRange, scsi.OpPreventAllow:
		return good()
	case scsi.OpModeSense6, scsi.OpModeSense10:
		return l.layout(c.CDB)
	case scsi.OpReadElementStatus:
		return l.elements(c.CDB)
	case scsi.OpMoveMedium:
		return l.move(be.Uint16(c.CDB[4:]), be.Uint16(c.CDB[6:]))
	}
	return check(scsi.IllegalRequest, scsi.CodeInvalidOpcode)
}

func (l *Library) layout(cdb []byte) outcome {
	if cdb[2]&0x3f != scsi.ModeElements {
		return badField
	}
	page := []byte{scsi.ModeElements, 18}
	for _, v := range []int{AddrRobot, 1, AddrSlot, l.o.Slots, AddrExport, l.o.Exports, AddrDrive, len(l.drives), 0} {
		page = be.AppendUint16(page, uint16(v))
	}
	if cdb[0] == scsi.OpModeSense6 {
		return good(append([]byte{byte(3 + len(page)), 0, 0, 0}, page...)...)
	}
	return good(append([]byte{0, byte(6 + len(page)), 0, 0, 0, 0, 0, 0}, page...)...)
}

func (l *Library) elements(cdb []byte) outcome {
	t, first, count := scsi.ElementType(cdb[1]&15), int(be.Uint16(cdb[2:])), int(be.Uint16(cdb[4:]))
	from, n := 0, 0
	switch t {
	case scsi.ElementRobot:
		from, n = AddrRobot, 1
	case scsi.ElementSlot:
		from, n = AddrSlot, l.o.Slots
	case scsi.ElementExport:
		from, n = AddrExport, l.o.Exports
	case scsi.ElementDrive:
		from, n = AddrDrive, len(l.drives)
	default:
		return badField
	}
	var es []scsi.Element
	for a := max(from, first); a < from+n && len(es) < count; a++ {
		e := scsi.Element{Type: t, Address: uint16(a), Access: true}
		if p, d := l.place(uint16(a)); p != nil && t != scsi.ElementRobot {
			if *p != nil {
				e.Full, e.Barcode = true, (*p).m.Barcode
				e.Source, e.HasSource = l.source[*p], l.source[*p] != 0
			}
			if d != nil {
				e.Device = "HOLDFAST VLTO-8 " + d.unit.serial
				e.Access = d.cart == nil || !d.loaded
			}
		}
		es = append(es, e)
	}
	return good(scsi.EncodeElements(t, es, cdb[6]&1 != 0)...)
}

func (l *Library) move(from, to uint16) outcome {
	src, srcDrive := l.place(from)
	dst, dstDrive := l.place(to)
	switch {
	case src == nil || dst == nil:
		return check(scsi.IllegalRequest, scsi.CodeInvalidElement)
	case *src == nil:
		return check(scsi.IllegalRequest, scsi.CodeSourceEmpty)
	case *dst != nil && from != to:
		return check(scsi.IllegalRequest, scsi.CodeDestinationFull)
	case srcDrive != nil && (srcDrive.loaded || len(srcDrive.prevented) > 0):
		return check(scsi.IllegalRequest, scsi.CodeRemovalPrevented)
	}
	c := *src
	*src = nil
	*dst = c
	if srcDrive == nil {
		l.source[c] = from
	}
	l.moves++
	l.log("move %s from %d to %d", c.m.Barcode, from, to)
	if dstDrive != nil {
		dstDrive.insert()
	}
	return good()
}
