#include "os/operands.hpp"

#if defined(__x86_64__)
#include <ucontext.h>
#endif

#include <cstddef>
#include <cstring>

namespace pmr_debug::os {

#if defined(__x86_64__)

namespace {

// Numbers of registers as instructions have them.
enum : unsigned { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi };

// The same, as interruption::registers has them.
constexpr int places[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                          REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

/// No valid pointer: the upper bits are neither all 0 nor all 1.
constexpr bool cannot_exist(std::uintptr_t p) noexcept {
    const std::uintptr_t top = p >> 47U;
    return top != 0 && top != 0x1'FFFF;
}

std::uintptr_t word_at(std::uintptr_t address) noexcept {
    std::uintptr_t word = 0;
    std::memcpy(&word, reinterpret_cast<const void*>(address), sizeof word);
    return word;
}

// Intel's manual, volume 2, "Instruction Format": as much of it as tells where an address comes from.
class decoder {
public:
    decoder(const interruption& where, operands& found) noexcept
        : where_(where), found_(found), code_(reinterpret_cast<const unsigned char*>(where.instruction)) {}

    void decode() noexcept {
        prefixes();
        const unsigned first = *code_++;
        switch (first) {
            case 0xC3:
            case 0xC2: add(word_at(value(rsp))); return;  // ret
            case 0xC9: add(value(rbp)); return;           // leave
            case 0xD7: add(value(rbx)); return;           // xlat
            case 0xA4:
            case 0xA5:
            case 0xA6:
            case 0xA7:  // movs, cmps
                add(value(rsi));
                add(value(rdi));
                return;
            case 0xAC:
            case 0xAD: add(value(rsi)); return;  // lods
            case 0xAA:
            case 0xAB:
            case 0xAE:
            case 0xAF: add(value(rdi)); return;  // stos, scas
            default: break;
        }
        if (first == 0xC5 || first == 0xC4 || first == 0x62) {
            vector(first);
        } else if (first == 0x0F) {
            const unsigned second = *code_++;
            if (second == 0x38 || second == 0x3A) {
                ++code_;
            }
            if (two_bytes_have_operand(second)) {
                memory(false);
            }
        } else if (one_byte_has_operand(first)) {
            memory(first == 0xFF);
        }
    }

private:
    void prefixes() noexcept {
        for (;; ++code_) {
            switch (*code_) {
                case 0x66:
                case 0x67:
                case 0xF2:
                case 0xF3:
                case 0xF0:
                case 0x2E:
                case 0x36:
                case 0x3E:
                case 0x26:
                case 0x64:
                case 0x65: continue;
                default: break;
            }
            break;
        }
        if ((*code_ & 0xF0U) == 0x40) {
            more_index_ = (*code_ & 2U) << 2U;
            more_base_ = (*code_ & 1U) << 3U;
            ++code_;
        }
    }

    // VEX and EVEX: the registers' upper bits are stored inverted.
    void vector(unsigned first) noexcept {
        if (first != 0xC5) {
            more_index_ = (~*code_ & 0x40U) >> 3U;
            more_base_ = (~*code_ & 0x20U) >> 2U;
        }
        code_ += first == 0xC5 ? 1 : (first == 0xC4 ? 2 : 3);
        const unsigned opcode = *code_++;
        if (opcode != 0x77) {  // vzeroupper
            memory(false);
        }
    }

    static bool one_byte_has_operand(unsigned op) noexcept {
        return (op < 0x40 && (op & 7U) < 4) || op == 0x63 || op == 0x69 || op == 0x6B || (op >= 0x80 && op <= 0x8F) ||
               op == 0xC0 || op == 0xC1 || op == 0xC6 || op == 0xC7 || (op >= 0xD0 && op <= 0xD3) ||
               (op >= 0xD8 && op <= 0xDF) || op == 0xF6 || op == 0xF7 || op == 0xFE || op == 0xFF;
    }

    static bool two_bytes_have_operand(unsigned op) noexcept {
        const bool none = (op >= 0x04 && op <= 0x0C) || (op >= 0x30 && op <= 0x37) || op == 0x77 ||
                          (op >= 0x80 && op <= 0x8F) || (op >= 0xA0 && op <= 0xA2) || (op >= 0xA8 && op <= 0xAA) ||
                          (op >= 0xC8 && op <= 0xCF);
        return !none;
    }

    void memory(bool may_jump) noexcept {
        const unsigned form = *code_++;
        const unsigned mode = form >> 6U;
        const unsigned what = (form >> 3U) & 7U;
        const unsigned low = form & 7U;
        const bool jumps = may_jump && (what == 2 || what == 4);
        if (mode == 3) {
            if (jumps) {
                add(value(low | more_base_));
            }
            return;
        }
        std::uintptr_t address = 0;
        bool plain = true;
        unsigned base = low;
        if (low == rsp) {
            const unsigned sib = *code_++;
            base = sib & 7U;
            const unsigned index = ((sib >> 3U) & 7U) | more_index_;
            if (index != rsp) {
                add(value(index));
                address += value(index) << (sib >> 6U);
            }
        }
        if (mode == 0 && base == rbp) {  // from the instruction, or nothing
            plain = low == rsp;
        } else {
            add(value(base | more_base_));
            address += value(base | more_base_);
        }
        if (jumps && plain) {
            std::int32_t offset = 0;
            if (mode == 1) {
                offset = int{*code_} - (*code_ < 0x80 ? 0 : 0x100);
            } else if (mode == 2 || base == rbp) {
                std::memcpy(&offset, code_, sizeof offset);
            }
            address += static_cast<std::uintptr_t>(static_cast<std::intptr_t>(offset));
            if (!cannot_exist(address)) {
                add(word_at(address));
            }
        }
    }

    [[nodiscard]] std::uintptr_t value(unsigned number) const noexcept { return where_.registers[places[number]]; }

    void add(std::uintptr_t p) noexcept {
        if (found_.count < sizeof found_.values / sizeof found_.values[0]) {
            found_.values[found_.count++] = p;
        }
    }

    const interruption& where_;
    operands& found_;
    const unsigned char* code_;
    unsigned more_index_ = 0;
    unsigned more_base_ = 0;
};

}  // namespace

void pointers_used(const interruption& where, operands& found) noexcept {
    if (cannot_exist(where.instruction)) {  // some processors fault where they have arrived
        found.values[found.count++] = where.instruction;
        return;
    }
    decoder(where, found).decode();
}

#else

void pointers_used(const interruption&, operands&) noexcept {}

#endif

}  // namespace pmr_debug::os
