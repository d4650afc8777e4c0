// Rules compiled from .eh_frame: what each directive means, and that broken tables do no harm.

#include "os/other_tools.hpp"
#include "os/unwind_table.hpp"
#include "stack/cfi.hpp"
#include "stack/rules.hpp"

#include <gtest/gtest.h>

#include <link.h>

#include <cstdint>
#include <memory>
#include <random>

// Code that is never run: only its unwind information is looked at. A label stands before the instruction that is asked
// for.
asm(R"(
.pushsection .text
.macro begin name
.globl \name
.type \name, @function
\name:
    .cfi_startproc
    nop
.endm
.macro finish name
    nop
    .cfi_endproc
.size \name, . - \name
.endm

begin rule_of_entry
finish rule_of_entry

begin rule_with_frame_pointer
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    nop
    .cfi_def_cfa_register %rbp
    .globl rule_with_frame_pointer_body
rule_with_frame_pointer_body:
    nop
    .cfi_remember_state
    .cfi_def_cfa %rsp, 8
    .cfi_restore %rbp
    .globl rule_with_frame_pointer_return
rule_with_frame_pointer_return:
    nop
    .cfi_restore_state
    .globl rule_with_frame_pointer_after
rule_with_frame_pointer_after:
finish rule_with_frame_pointer

begin rule_without_frame_pointer
    .cfi_def_cfa_offset 0x8018
    .cfi_rel_offset %rbp, 0x8008
    .globl rule_without_frame_pointer_body
rule_without_frame_pointer_body:
finish rule_without_frame_pointer

begin rule_of_outermost
    .cfi_undefined %rip
    .globl rule_of_outermost_body
rule_of_outermost_body:
finish rule_of_outermost

begin rule_of_realigned
    .cfi_escape 0x0f, 0x03, 0x76, 0x78, 0x06
    .cfi_escape 0x10, 0x06, 0x02, 0x76, 0x00
    .globl rule_of_realigned_body
rule_of_realigned_body:
finish rule_of_realigned

begin rule_of_expression
    .cfi_escape 0x0f, 0x03, 0x77, 0x08, 0x06
    .globl rule_of_expression_body
rule_of_expression_body:
finish rule_of_expression

begin rule_of_other_register
    .cfi_def_cfa_register %r10
    .globl rule_of_other_register_body
rule_of_other_register_body:
finish rule_of_other_register

begin rule_of_saved_in_register
    .cfi_register %rbp, %rbx
    .globl rule_of_saved_in_register_body
rule_of_saved_in_register_body:
finish rule_of_saved_in_register

begin rule_of_lost_frame_pointer
    .cfi_undefined %rbp
    .globl rule_of_lost_frame_pointer_body
rule_of_lost_frame_pointer_body:
finish rule_of_lost_frame_pointer

begin rule_of_same_value
    .cfi_offset %rbp, -32
    .cfi_same_value %rbp
    .globl rule_of_same_value_body
rule_of_same_value_body:
finish rule_of_same_value

begin rule_of_signal_frame
    .cfi_signal_frame
finish rule_of_signal_frame

begin rule_too_large
    .cfi_def_cfa_offset 0x40000000
    .globl rule_too_large_body
rule_too_large_body:
finish rule_too_large

begin rule_of_moved_return_address
    .cfi_def_cfa_offset 64
    .cfi_offset %rip, -32
    .globl rule_of_moved_return_address_body
rule_of_moved_return_address_body:
finish rule_of_moved_return_address

.globl rule_of_nothing
.type rule_of_nothing, @function
rule_of_nothing:
    nop
    nop
.size rule_of_nothing, . - rule_of_nothing
.popsection
)");

extern "C" {
extern const char rule_of_entry[];
extern const char rule_with_frame_pointer_body[];
extern const char rule_with_frame_pointer_return[];
extern const char rule_with_frame_pointer_after[];
extern const char rule_without_frame_pointer_body[];
extern const char rule_of_outermost_body[];
extern const char rule_of_realigned_body[];
extern const char rule_of_expression_body[];
extern const char rule_of_other_register_body[];
extern const char rule_of_saved_in_register_body[];
extern const char rule_of_lost_frame_pointer_body[];
extern const char rule_of_same_value_body[];
extern const char rule_of_signal_frame[];
extern const char rule_too_large_body[];
extern const char rule_of_moved_return_address_body[];
extern const char rule_of_nothing[];
}

namespace {

using namespace pmr_debug;
using stack::compile_rule;
using stack::frame_rule;
using kind = frame_rule::kind;
using frame_pointer = frame_rule::frame_pointer;

stack::rule_source here() {
    const os::unwind_table t = os::find_unwind_table(reinterpret_cast<std::uintptr_t>(rule_of_entry));
    return {t.header, t.low, t.high};
}

frame_rule rule_at(const char* label) {
    return compile_rule(here(), reinterpret_cast<std::uintptr_t>(label));
}

TEST(frame_rules, by_the_stack_pointer) {
    const frame_rule r = rule_at(rule_of_entry);
    ASSERT_EQ(r.what(), kind::plain);
    EXPECT_FALSE(r.by_frame_pointer());
    EXPECT_EQ(r.cfa(), 8);
    EXPECT_EQ(r.saved(), frame_pointer::same);
    EXPECT_EQ(r.return_address_at(), -8);
    const frame_rule large = rule_at(rule_without_frame_pointer_body);
    ASSERT_EQ(large.what(), kind::plain);
    EXPECT_EQ(large.cfa(), 0x8018);
    EXPECT_EQ(large.saved(), frame_pointer::saved_at_cfa);
    EXPECT_EQ(large.saved_at(), -16);
}

TEST(frame_rules, by_the_frame_pointer_and_in_what_follows_a_return) {
    for (const char* const label : {rule_with_frame_pointer_body, rule_with_frame_pointer_after}) {
        const frame_rule r = rule_at(label);
        ASSERT_EQ(r.what(), kind::plain);
        EXPECT_TRUE(r.by_frame_pointer());
        EXPECT_EQ(r.cfa(), 16);
        EXPECT_EQ(r.saved(), frame_pointer::saved_at_cfa);
        EXPECT_EQ(r.saved_at(), -16);
    }
    const frame_rule r = rule_at(rule_with_frame_pointer_return);
    ASSERT_EQ(r.what(), kind::plain);
    EXPECT_FALSE(r.by_frame_pointer());
    EXPECT_EQ(r.cfa(), 8);
    EXPECT_EQ(r.saved(), frame_pointer::same);
}

TEST(frame_rules, of_code_that_realigns_its_stack) {
    const frame_rule r = rule_at(rule_of_realigned_body);
    ASSERT_EQ(r.what(), kind::plain);
    EXPECT_TRUE(r.by_frame_pointer());
    EXPECT_TRUE(r.loaded());
    EXPECT_EQ(r.cfa(), -8);
    EXPECT_EQ(r.saved(), frame_pointer::saved_at_frame_pointer);
    EXPECT_EQ(r.saved_at(), 0);
}

TEST(frame_rules, where_the_return_address_was_moved) {
    const frame_rule r = rule_at(rule_of_moved_return_address_body);
    ASSERT_EQ(r.what(), kind::plain);
    EXPECT_EQ(r.cfa(), 64);
    EXPECT_EQ(r.return_address_at(), -32);
}

TEST(frame_rules, that_say_that_a_register_is_as_it_was) {
    const frame_rule r = rule_at(rule_of_same_value_body);
    ASSERT_EQ(r.what(), kind::plain);
    EXPECT_EQ(r.saved(), frame_pointer::same);
}

TEST(frame_rules, of_the_outermost_frame) {
    EXPECT_EQ(rule_at(rule_of_outermost_body).what(), kind::outermost);
}

TEST(frame_rules, that_take_the_unwinder) {
    for (const char* const label :
         {rule_of_expression_body, rule_of_other_register_body, rule_of_saved_in_register_body,
          rule_of_lost_frame_pointer_body, rule_of_signal_frame, rule_too_large_body}) {
        EXPECT_EQ(rule_at(label).what(), kind::unknown) << label - rule_of_entry;
    }
}

TEST(frame_rules, of_code_that_has_none) {
    EXPECT_EQ(rule_at(rule_of_nothing).what(), kind::no_data);
    EXPECT_EQ(compile_rule(here(), here().low).what(), kind::no_data) << "before the first function";
    EXPECT_EQ(compile_rule({}, here().low).what(), kind::unknown);
}

TEST(frame_rules, fit_into_a_word_whatever_their_numbers) {
    constexpr std::int64_t numbers[] = {-65'536, -8, 0, 8, 16, 65'528};
    for (const std::int64_t cfa : {std::int64_t{-1'048'576}, std::int64_t{8}, std::int64_t{1'048'568}}) {
        for (const std::int64_t saved : numbers) {
            for (const std::int64_t back : {-16'384, -8, 0, 16'376}) {
                const frame_rule r = frame_rule::plain({.by_frame_pointer = saved > 0,
                                                        .loaded = back > 0,
                                                        .cfa = cfa,
                                                        .saved = frame_pointer::saved_at_frame_pointer,
                                                        .saved_at = saved,
                                                        .return_address_at = back});
                ASSERT_EQ(r.what(), kind::plain);
                EXPECT_EQ(r.by_frame_pointer(), saved > 0);
                EXPECT_EQ(r.loaded(), back > 0);
                EXPECT_EQ(r.cfa(), cfa);
                EXPECT_EQ(r.saved(), frame_pointer::saved_at_frame_pointer);
                EXPECT_EQ(r.saved_at(), saved);
                EXPECT_EQ(r.return_address_at(), back);
                EXPECT_EQ(r.bits() >> frame_rule::free_bits_at, 0U);
            }
        }
    }
    EXPECT_EQ(frame_rule::plain({.cfa = 1'048'576}).what(), kind::unknown);
    EXPECT_EQ(frame_rule::plain({.cfa = 12}).what(), kind::unknown);
    EXPECT_EQ(frame_rule::plain({.cfa = 8, .saved_at = 65'536}).what(), kind::unknown);
    EXPECT_EQ(frame_rule::plain({.cfa = 8, .return_address_at = -16'392}).what(), kind::unknown);
}

/// The tables of this program, at other addresses, in memory of just their size.
struct copied_tables {
    std::uintptr_t from = 0;
    std::size_t bytes = 0;
    std::unique_ptr<unsigned char[]> memory;

    copied_tables() {
        ::dl_iterate_phdr(
            [](dl_phdr_info* info, std::size_t, void* data) {
                auto& mine = *static_cast<copied_tables*>(data);
                const auto header = reinterpret_cast<std::uintptr_t>(here().header);
                for (unsigned i = 0; i < info->dlpi_phnum; ++i) {
                    const auto& part = info->dlpi_phdr[i];
                    const std::uintptr_t at = info->dlpi_addr + part.p_vaddr;
                    if (part.p_type == PT_LOAD && at <= header && header < at + part.p_filesz) {
                        mine.from = at;
                        mine.bytes = part.p_filesz;
                    }
                }
                return 0;
            },
            this);
        memory = std::make_unique<unsigned char[]>(bytes);
        copy(reinterpret_cast<const unsigned char*>(from));
    }
    /// The segment has other read-only data in it, which a sanitizer puts red zones around.
    PMR_DEBUG_UNSEEN_BY_ASAN void copy(const unsigned char* start) {
        for (std::size_t i = 0; i < bytes; ++i) {
            memory[i] = start[i];
            asm volatile("");  // or it becomes a call of memcpy
        }
    }
    [[nodiscard]] std::uintptr_t moved(std::uintptr_t address) const {
        return address - from + reinterpret_cast<std::uintptr_t>(memory.get());
    }
    [[nodiscard]] stack::rule_source source() const {
        const auto low = reinterpret_cast<std::uintptr_t>(memory.get());
        return {reinterpret_cast<const unsigned char*>(moved(reinterpret_cast<std::uintptr_t>(here().header))), low,
                low + bytes};
    }
};

TEST(frame_rules, of_broken_tables_end_somehow_and_read_nothing_else) {
    const copied_tables copy;
    ASSERT_NE(copy.bytes, 0U);
    const char* const labels[] = {rule_of_entry, rule_with_frame_pointer_body, rule_of_realigned_body,
                                  rule_of_expression_body};
    for (const char* const label : labels) {
        const auto address = reinterpret_cast<std::uintptr_t>(label);
        EXPECT_EQ(compile_rule(copy.source(), copy.moved(address)).bits(), rule_at(label).bits());
    }
    std::mt19937_64 random(7);
    const std::size_t header = static_cast<std::size_t>(copy.source().header - copy.memory.get());
    for (int i = 0; i < 100'000; ++i) {
        // Most of what decides is in the header and at the beginning of the table, which the common entry is.
        std::size_t at[3];
        unsigned char was[3];
        for (int n = 0; n < 3; ++n) {
            at[n] = random() % 2 == 0 ? random() % copy.bytes
                                      : header + random() % std::min<std::size_t>(copy.bytes - header, 4'096);
            was[n] = copy.memory[at[n]];
            copy.memory[at[n]] = static_cast<unsigned char>(random());
        }
        const char* const label = labels[random() % 4];
        (void)compile_rule(copy.source(), copy.moved(reinterpret_cast<std::uintptr_t>(label)));
        for (int n = 3; n-- > 0;) {
            copy.memory[at[n]] = was[n];
        }
    }
    for (std::size_t cut = 0; cut < 64; ++cut) {
        stack::rule_source s = copy.source();
        s.high = reinterpret_cast<std::uintptr_t>(s.header) + cut;
        EXPECT_NE(compile_rule(s, copy.moved(reinterpret_cast<std::uintptr_t>(rule_of_entry))).what(), kind::plain);
    }
}

}  // namespace
