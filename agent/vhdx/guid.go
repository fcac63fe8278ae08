package vhdx

import (
	"encoding/binary"
	"strings"
	"unicode/utf16"

	"github.com/holdfast-backup/holdfast"
)

// The GUIDs that name regions, metadata items and the locator type.
var (
	guidBAT        = mustGUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
	guidMetadata   = mustGUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
	guidFileParams = mustGUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
	guidDiskSize   = mustGUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
	guidDiskID     = mustGUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
	guidLogical    = mustGUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
	guidPhysical   = mustGUID("CDA348C7-445D-4471-9CC9-E9885251C556")
	guidLocator    = mustGUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
	guidLocVHDX    = mustGUID("B04AEFB7-D19E-4A81-B789-25B8E9445913")
)

// mustGUID parses a constant of this package.
func mustGUID(s string) holdfast.ID {
	id, err := holdfast.ParseID(s)
	if err != nil {
		panic(err)
	}
	return id
}

// getGUID reads a GUID as Windows stores it: the first three fields little-endian. The ID prints as Windows prints it.
func getGUID(b []byte) holdfast.ID {
	var id holdfast.ID
	binary.BigEndian.PutUint32(id[0:], binary.LittleEndian.Uint32(b[0:]))
	binary.BigEndian.PutUint16(id[4:], binary.LittleEndian.Uint16(b[4:]))
	binary.BigEndian.PutUint16(id[6:], binary.LittleEndian.Uint16(b[6:]))
	copy(id[8:], b[8:16])
	return id
}

// putGUID is the inverse of getGUID.
func putGUID(b []byte, id holdfast.ID) {
	binary.LittleEndian.PutUint32(b[0:], binary.BigEndian.Uint32(id[0:]))
	binary.LittleEndian.PutUint16(b[4:], binary.BigEndian.Uint16(id[4:]))
	binary.LittleEndian.PutUint16(b[6:], binary.BigEndian.Uint16(id[6:]))
	copy(b[8:16], id[8:])
}

// braced returns the form used in parent locators.
func braced(id holdfast.ID) string { return "{" + strings.ToLower(id.String()) + "}" }

// utf16LE encodes without a terminator.
func utf16LE(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// fromUTF16 decodes text of an even length and stops at a terminator.
func fromUTF16(b []byte, order binary.ByteOrder) string {
	u := make([]uint16, 0, len(b)/2)
	for i := 0; i+1 < len(b); i += 2 {
		c := order.Uint16(b[i:])
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}
