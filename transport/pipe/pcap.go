package pipe

import (
	"encoding/binary"
	"io"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

const (
	pcapMagic   = 0xa1b23c4d // the magic number of a file with times in nanoseconds; written in little-endian order
	pcapLength  = 1 << 16    // maximum number of bytes of a packet
	linktypeRaw = 101        // LINKTYPE_RAW: a packet begins with the IP header
)

// WritePcap returns a function for Network.Tap. The function writes each datagram to w as a packet with IP and UDP headers,
// with the time when its fate was decided. The result is a capture file, which Wireshark can open. A capture file does not show
// the fates. To leave out some fates, write a function that calls this one only for the others. WritePcap writes the file's
// header at once. After an error of w, the function writes nothing more.
func WritePcap(w io.Writer) func(p Packet) {
	file := make([]byte, 24)
	binary.LittleEndian.PutUint32(file, pcapMagic)
	binary.LittleEndian.PutUint16(file[4:], 2) // version 2.4
	binary.LittleEndian.PutUint16(file[6:], 4)
	binary.LittleEndian.PutUint32(file[16:], pcapLength)
	binary.LittleEndian.PutUint32(file[20:], linktypeRaw)
	_, err := w.Write(file)
	var record []byte
	return func(p Packet) {
		if err != nil || p.From.Addr().Is4() != p.To.Addr().Is4() {
			return
		}
		h := headers(p.To.Addr())
		record = append(record[:0], make([]byte, 16+h)...)
		binary.LittleEndian.PutUint32(record, uint32(p.Time.Unix()))
		binary.LittleEndian.PutUint32(record[4:], uint32(p.Time.Nanosecond()))
		binary.LittleEndian.PutUint32(record[8:], uint32(h+len(p.Data)))
		binary.LittleEndian.PutUint32(record[12:], uint32(h+len(p.Data)))
		packet.PutUDP(record[16:], p.From, p.To, p.TOS, p.Data)
		record = append(record, p.Data...)
		_, err = w.Write(record)
	}
}
