#include "stack/cfi.hpp"

#include <cstddef>
#include <cstring>

namespace pmr_debug::stack {

namespace {

// DWARF's numbers of registers.
#if defined(__x86_64__)
constexpr std::uint64_t frame_pointer_column = 6;
constexpr std::uint64_t stack_pointer_column = 7;
constexpr std::uint64_t return_address_column = 16;
#elif defined(__aarch64__)
constexpr std::uint64_t frame_pointer_column = 29;
constexpr std::uint64_t stack_pointer_column = 31;
constexpr std::uint64_t return_address_column = 30;
#else
#error "pmr_debug: no rules for this processor yet"
#endif
constexpr unsigned char op_deref = 0x06;
constexpr unsigned char op_breg0 = 0x70;

/// Bytes from `at` up to `end`. Once one is asked for that is not there, it is broken, and gives zeros.
class reader {
public:
    reader(std::uintptr_t at, std::uintptr_t end) noexcept : at_(at), end_(at <= end ? end : at) {}

    [[nodiscard]] bool ok() const noexcept { return ok_; }
    [[nodiscard]] bool more() const noexcept { return ok_ && at_ < end_; }
    [[nodiscard]] std::uintptr_t at() const noexcept { return at_; }

    template <class T>
    T take() noexcept {
        T value{};
        if (need(sizeof value)) {
            std::memcpy(&value, reinterpret_cast<const void*>(at_), sizeof value);
            at_ += sizeof value;
        }
        return value;
    }
    std::uint8_t byte() noexcept { return take<std::uint8_t>(); }
    std::uint64_t unsigned_number() noexcept {
        std::uint64_t value = 0;
        for (unsigned shift = 0;; shift += 7) {
            const std::uint8_t b = byte();
            value |= shift < 64 ? std::uint64_t{b & 0x7FU} << shift : 0;
            if ((b & 0x80U) == 0) {
                return value;
            }
        }
    }
    std::int64_t signed_number() noexcept {
        std::uint64_t value = 0;
        for (unsigned shift = 0;;) {
            const std::uint8_t b = byte();
            value |= shift < 64 ? std::uint64_t{b & 0x7FU} << shift : 0;
            shift += 7;
            if ((b & 0x80U) == 0) {
                if (shift < 64 && (b & 0x40U) != 0) {
                    value |= ~std::uint64_t{0} << shift;
                }
                return static_cast<std::int64_t>(value);
            }
        }
    }
    /// Returns: a reader of the next \p bytes, which are skipped.
    reader part(std::uint64_t bytes) noexcept {
        if (!need(bytes)) {
            reader none(at_, at_);
            none.ok_ = false;
            return none;
        }
        const std::uintptr_t from = at_;
        at_ += static_cast<std::uintptr_t>(bytes);
        return {from, at_};
    }
    /// A pointer in the encoding \p how, see DW_EH_PE_; the base of relative ones is \p data.
    std::uintptr_t pointer(std::uint8_t how, std::uintptr_t data) noexcept {
        const std::uintptr_t from = at_;
        const std::uint64_t value = raw(how & 0x0FU);
        switch (how & 0xF0U) {
            case 0x00: return static_cast<std::uintptr_t>(value);
            case 0x10: return from + static_cast<std::uintptr_t>(value);
            case 0x30: return data + static_cast<std::uintptr_t>(value);
            default: ok_ = false; return 0;
        }
    }
    void fail() noexcept { ok_ = false; }

private:
    bool need(std::uint64_t bytes) noexcept {
        ok_ = ok_ && bytes <= end_ - at_;
        return ok_;
    }
    std::uint64_t raw(unsigned format) noexcept {
        switch (format) {
            case 0x00:
            case 0x04:
            case 0x0C: return take<std::uint64_t>();
            case 0x01: return unsigned_number();
            case 0x02: return take<std::uint16_t>();
            case 0x03: return take<std::uint32_t>();
            case 0x09: return static_cast<std::uint64_t>(signed_number());
            case 0x0A: return static_cast<std::uint64_t>(std::int64_t{take<std::int16_t>()});
            case 0x0B: return static_cast<std::uint64_t>(std::int64_t{take<std::int32_t>()});
            default: ok_ = false; return 0;
        }
    }

    std::uintptr_t at_;
    std::uintptr_t end_;
    bool ok_ = true;
};

/// Where a register of the caller is.
struct place {
    enum class how : std::uint8_t { same, at_cfa, at_frame_pointer, undefined, other } is = how::same;
    std::int64_t offset = 0;
};

/// A row of the table that the instructions describe.
struct row {
    std::uint64_t cfa_register = stack_pointer_column;
    std::int64_t cfa_offset = 0;
    bool cfa_loaded = false;  ///< what is stored there
    bool cfa_known = false;
    place frame_pointer;
    place return_address;
    place stack_pointer;  ///< the CFA, unless told otherwise
};

/// Common information of some functions.
struct common {
    std::uint64_t code_step = 0;
    std::int64_t data_step = 0;
    std::uint8_t address_encoding = 0;
    bool has_augmentation = false;
    bool understood = false;
    reader instructions{0, 0};
};

/// Effects: reads the length of an entry. Returns: its content.
reader entry_at(std::uintptr_t at, const rule_source& source) noexcept {
    if (at < source.low || at >= source.high) {
        reader none(at, at);
        none.fail();
        return none;
    }
    reader r(at, source.high);
    const auto length = r.take<std::uint32_t>();
    if (length == 0 || length == 0xFFFF'FFFF) {
        r.fail();
    }
    return r.part(length);
}

common read_common(std::uintptr_t at, const rule_source& source) noexcept {
    common c;
    reader r = entry_at(at, source);
    const auto id = r.take<std::uint32_t>();
    const std::uint8_t version = r.byte();
    char augmentation[8]{};
    for (char& letter : augmentation) {
        letter = static_cast<char>(r.byte());
        if (letter == '\0') {
            break;
        }
    }
    if (!r.ok() || id != 0 || (version != 1 && version != 3) || augmentation[7] != '\0') {
        return c;
    }
    c.code_step = r.unsigned_number();
    c.data_step = r.signed_number();
    const std::uint64_t column = version == 1 ? r.byte() : r.unsigned_number();
    if (column != return_address_column) {
        return c;
    }
    if (augmentation[0] == 'z') {
        c.has_augmentation = true;
        reader data = r.part(r.unsigned_number());
        for (const char* letter = augmentation + 1; *letter != '\0'; ++letter) {
            switch (*letter) {
                case 'R': c.address_encoding = data.byte(); break;
                case 'L': data.byte(); break;
                case 'P': {
                    const std::uint8_t how = data.byte();
                    (void)data.pointer(how & 0x0FU, 0);
                    break;
                }
                case 'B': break;    // return addresses are signed with the other key
                default: return c;  // 'S': the frame of a signal handler
            }
        }
        if (!data.ok()) {
            return c;
        }
    } else if (augmentation[0] != '\0') {
        return c;
    }
    c.instructions = r;
    c.understood = r.ok();
    return c;
}

/// The instructions of one function, carried out up to one address.
class machine {
public:
    machine(const common& c, std::uintptr_t start, std::uintptr_t address, std::uintptr_t data) noexcept
        : common_(c), data_(data), location_(start), address_(address) {}

    /// Returns: false if something is not understood.
    [[nodiscard]] bool run(reader initial, reader own) noexcept {
        if (!carry_out(initial)) {
            return false;
        }
        initial_ = now_;
        return carry_out(own);
    }
    [[nodiscard]] const row& result() const noexcept { return now_; }

private:
    place* place_of(std::uint64_t column) noexcept {
        return column == frame_pointer_column    ? &now_.frame_pointer
               : column == return_address_column ? &now_.return_address
               : column == stack_pointer_column  ? &now_.stack_pointer
                                                 : nullptr;
    }
    void put(std::uint64_t column, place::how how, std::int64_t offset = 0) noexcept {
        if (place* const p = place_of(column); p != nullptr) {
            *p = {how, offset};
        }
    }
    void restore(std::uint64_t column) noexcept {
        if (place* const p = place_of(column); p != nullptr) {
            *p = column == frame_pointer_column    ? initial_.frame_pointer
                 : column == return_address_column ? initial_.return_address
                                                   : initial_.stack_pointer;
        }
    }
    [[nodiscard]] std::int64_t scaled(std::int64_t n) const noexcept {
        return static_cast<std::int64_t>(static_cast<std::uint64_t>(n) * static_cast<std::uint64_t>(common_.data_step));
    }
    [[nodiscard]] std::int64_t scaled(std::uint64_t n) const noexcept { return scaled(static_cast<std::int64_t>(n)); }
    /// Returns: false if the row that was built so far is the address's.
    [[nodiscard]] bool advance(std::uint64_t steps) noexcept {
        const std::uintptr_t next = location_ + static_cast<std::uintptr_t>(steps * common_.code_step);
        if (next > address_ || next < location_) {
            return false;
        }
        location_ = next;
        return true;
    }
    void define_cfa(std::uint64_t column, std::int64_t offset) noexcept {
        now_.cfa_register = column;
        now_.cfa_offset = offset;
        now_.cfa_loaded = false;
        now_.cfa_known = true;
    }
    /// Returns: true if \p expression is: the frame pointer and \p offset, and \p loaded what is stored there.
    static bool is_by_frame_pointer(reader expression, std::int64_t& offset, bool& loaded) noexcept {
        const bool starts = expression.byte() == op_breg0 + frame_pointer_column;
        offset = expression.signed_number();
        loaded = expression.more() && expression.byte() == op_deref;
        return starts && expression.ok() && !expression.more();
    }

    [[nodiscard]] bool carry_out(reader r) noexcept {
        while (r.more()) {
            const std::uint8_t code = r.byte();
            const std::uint64_t low = code & 0x3FU;
            switch (code >> 6U) {
                case 1:
                    if (!advance(low)) {
                        return true;
                    }
                    continue;
                case 2: put(low, place::how::at_cfa, scaled(r.unsigned_number())); continue;
                case 3: restore(low); continue;
                default: break;
            }
            bool reached = false;
            if (!carry_out_extended(code, r, reached)) {
                return false;
            }
            if (reached) {
                return r.ok();
            }
        }
        return r.ok();
    }

    /// \p reached: the row that was built so far is the address's.
    [[nodiscard]] bool carry_out_extended(std::uint8_t code, reader& r, bool& reached) noexcept {
        switch (code) {
            case 0x00: break;  // nop
            case 0x01: {       // set_loc
                const std::uintptr_t next = r.pointer(common_.address_encoding, data_);
                reached = next > address_ || next < location_;
                location_ = reached ? location_ : next;
                break;
            }
            case 0x02: reached = !advance(r.byte()); break;                 // advance_loc1
            case 0x03: reached = !advance(r.take<std::uint16_t>()); break;  // advance_loc2
            case 0x04: reached = !advance(r.take<std::uint32_t>()); break;  // advance_loc4
            case 0x05: {                                                    // offset_extended
                const std::uint64_t column = r.unsigned_number();
                put(column, place::how::at_cfa, scaled(r.unsigned_number()));
                break;
            }
            case 0x06: restore(r.unsigned_number()); break;                     // restore_extended
            case 0x07: put(r.unsigned_number(), place::how::undefined); break;  // undefined
            case 0x08: put(r.unsigned_number(), place::how::same); break;       // same_value
            case 0x09: {                                                        // register
                const std::uint64_t column = r.unsigned_number();
                (void)r.unsigned_number();
                put(column, place::how::other);
                break;
            }
            case 0x0A:  // remember_state
                if (remembered_ == most_remembered) {
                    return false;
                }
                memory_[remembered_++] = now_;
                break;
            case 0x0B:  // restore_state
                if (remembered_ == 0) {
                    return false;
                }
                now_ = memory_[--remembered_];
                break;
            case 0x0C: {  // def_cfa
                const std::uint64_t column = r.unsigned_number();
                define_cfa(column, static_cast<std::int64_t>(r.unsigned_number()));
                break;
            }
            case 0x0D: define_cfa(r.unsigned_number(), now_.cfa_offset); break;  // def_cfa_register
            case 0x0E:                                                           // def_cfa_offset
                define_cfa(now_.cfa_register, static_cast<std::int64_t>(r.unsigned_number()));
                break;
            case 0x0F: {  // def_cfa_expression
                now_.cfa_register = frame_pointer_column;
                now_.cfa_known = is_by_frame_pointer(r.part(r.unsigned_number()), now_.cfa_offset, now_.cfa_loaded);
                break;
            }
            case 0x10: {  // expression: where it is stored
                const std::uint64_t column = r.unsigned_number();
                std::int64_t offset = 0;
                bool loaded = false;
                const bool simple = is_by_frame_pointer(r.part(r.unsigned_number()), offset, loaded) && !loaded;
                put(column, simple ? place::how::at_frame_pointer : place::how::other, offset);
                break;
            }
            case 0x11: {  // offset_extended_sf
                const std::uint64_t column = r.unsigned_number();
                put(column, place::how::at_cfa, scaled(r.signed_number()));
                break;
            }
            case 0x12: {  // def_cfa_sf
                const std::uint64_t column = r.unsigned_number();
                define_cfa(column, scaled(r.signed_number()));
                break;
            }
            case 0x13: define_cfa(now_.cfa_register, scaled(r.signed_number())); break;  // def_cfa_offset_sf
            case 0x14:                                                                   // val_offset
            case 0x15: {                                                                 // val_offset_sf
                const std::uint64_t column = r.unsigned_number();
                (void)r.unsigned_number();
                put(column, place::how::other);
                break;
            }
            case 0x16: {  // val_expression
                const std::uint64_t column = r.unsigned_number();
                (void)r.part(r.unsigned_number());
                put(column, place::how::other);
                break;
            }
            case 0x2D: break;                             // AArch64: return addresses are signed from here on, or not
            case 0x2E: (void)r.unsigned_number(); break;  // GNU_args_size
            case 0x2F: {                                  // GNU_negative_offset_extended
                const std::uint64_t column = r.unsigned_number();
                put(column, place::how::at_cfa, -scaled(r.unsigned_number()));
                break;
            }
            default: return false;
        }
        return r.ok();
    }

    static constexpr unsigned most_remembered = 8;

    const common& common_;
    std::uintptr_t data_;
    std::uintptr_t location_;
    std::uintptr_t address_;
    row now_;
    row initial_;
    row memory_[most_remembered];
    unsigned remembered_ = 0;
};

frame_rule rule_of(const row& r) noexcept {
    using how = place::how;
    if (r.return_address.is == how::undefined) {
        return frame_rule(frame_rule::kind::outermost);
    }
    frame_rule::parts p;
    p.by_frame_pointer = r.cfa_register == frame_pointer_column;
    p.loaded = r.cfa_loaded;
    p.cfa = r.cfa_offset;
    p.return_address_at = r.return_address.offset;
    p.saved_at = r.frame_pointer.offset;
    switch (r.frame_pointer.is) {
        case how::same: p.saved_at = 0; break;
        case how::at_cfa: p.saved = frame_rule::frame_pointer::saved_at_cfa; break;
        case how::at_frame_pointer: p.saved = frame_rule::frame_pointer::saved_at_frame_pointer; break;
        default: return frame_rule(frame_rule::kind::unknown);
    }
    const bool known_register = p.by_frame_pointer || r.cfa_register == stack_pointer_column;
    if (!r.cfa_known || !known_register || r.stack_pointer.is != how::same || r.return_address.is != how::at_cfa) {
        return frame_rule(frame_rule::kind::unknown);
    }
    return frame_rule::plain(p);
}

/// Returns: where the entry is for the last function that begins at \p address or before; 0: there is none, or the
/// index is not one that can be searched (\p searched false).
std::uintptr_t find_function(const rule_source& source, std::uintptr_t address, bool& searched) noexcept {
    searched = false;
    const auto header = reinterpret_cast<std::uintptr_t>(source.header);
    if (header < source.low || header >= source.high) {
        return 0;
    }
    reader r(header, source.high);
    const std::uint8_t version = r.byte();
    const std::uint8_t section_encoding = r.byte();
    const std::uint8_t count_encoding = r.byte();
    const std::uint8_t table_encoding = r.byte();
    constexpr std::uint8_t relative_4_bytes = 0x3B;
    if (version != 1 || table_encoding != relative_4_bytes || (count_encoding & 0xF0U) != 0) {
        return 0;
    }
    (void)r.pointer(section_encoding, header);
    const std::uintptr_t count = r.pointer(count_encoding, header);
    struct line {
        std::int32_t start;
        std::int32_t entry;
    };
    const std::uintptr_t table = r.at();
    if (!r.ok() || count > (source.high - table) / sizeof(line)) {
        return 0;
    }
    searched = true;
    const auto line_at = [table](std::uintptr_t i) noexcept {
        line l;
        std::memcpy(&l, reinterpret_cast<const void*>(table + i * sizeof l), sizeof l);
        return l;
    };
    std::uintptr_t from = 0;  // functions before this begin at the address or before it
    std::uintptr_t to = count;
    while (from < to) {
        const std::uintptr_t middle = from + (to - from) / 2;
        if (header + static_cast<std::uintptr_t>(std::intptr_t{line_at(middle).start}) <= address) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    return from == 0 ? 0 : header + static_cast<std::uintptr_t>(std::intptr_t{line_at(from - 1).entry});
}

/// The rule by the function's entry at \p at.
frame_rule compile_entry(const rule_source& source, std::uintptr_t at, std::uintptr_t address) noexcept {
    const auto header = reinterpret_cast<std::uintptr_t>(source.header);
    reader r = entry_at(at, source);
    const std::uintptr_t here = r.at();
    const auto back = r.take<std::uint32_t>();
    if (!r.ok() || back == 0 || back > here - source.low) {
        return frame_rule(frame_rule::kind::unknown);
    }
    const common c = read_common(here - back, source);
    if (!c.understood) {
        return frame_rule(frame_rule::kind::unknown);
    }
    const std::uintptr_t start = r.pointer(c.address_encoding, header);
    const std::uintptr_t bytes = r.pointer(c.address_encoding & 0x0FU, 0);
    if (c.has_augmentation) {
        (void)r.part(r.unsigned_number());
    }
    if (!r.ok()) {
        return frame_rule(frame_rule::kind::unknown);
    }
    if (address - start >= bytes) {
        return frame_rule(frame_rule::kind::no_data);
    }
    machine m(c, start, address, header);
    return m.run(c.instructions, r) ? rule_of(m.result()) : frame_rule(frame_rule::kind::unknown);
}

}  // namespace

frame_rule compile_rule(const rule_source& source, std::uintptr_t address) noexcept {
    bool searched = false;
    const std::uintptr_t at = find_function(source, address, searched);
    if (at == 0) {
        return frame_rule(searched ? frame_rule::kind::no_data : frame_rule::kind::unknown);
    }
    return compile_entry(source, at, address);
}

frame_rule compile_rule_of(const void* entry, std::uintptr_t address) noexcept {
    return compile_entry({nullptr, 0, ~std::uintptr_t{0}}, reinterpret_cast<std::uintptr_t>(entry), address);
}

}  // namespace pmr_debug::stack
