// Reports as text: golden text of every kind, how traces are shown, how numbers are written.

#include "report/text.hpp"
#include "report/writer.hpp"
#include "support/cut_trace.hpp"
#include "support/mask.hpp"
#include "support/sample_reports.hpp"

#include <pmr_debug/report.hpp>
#include <pmr_debug/stack_trace.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using namespace pmr_debug;
using test_support::at;
using test_support::mask;
using test_support::sample;
using test_support::text_of;
using enum pmr_debug::error_kind;

bool contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

// Calls \p print with a writer; returns what it wrote.
template <class Print>
std::string written(const Print& print) {
    std::string text;
    {
        detail::writer out(test_support::append, &text);
        print(out);
    }
    return text;
}

__attribute__((noinline)) trace_id inner_function() {
    const trace_id id = capture_trace(16);
    asm volatile("");
    return id;
}

__attribute__((noinline)) trace_id outer_function() {
    const trace_id id = inner_function();
    asm volatile("");
    return id;
}

// Kind and masked text. Addresses are 0x*.
struct golden {
    error_kind kind;
    std::string_view text;
};

// clang-format off
const golden texts[] = {
    {leak, R"(pmr_debug: leak: 20064 bytes (19.6 KiB) in 101 blocks were never freed
  resource   "index" (general_purpose_resource #3 at 0x*)
  threads    reported by 2
  leak 1 of 2: 20000 bytes (19.5 KiB) in 100 blocks, for example 0x* (200 bytes), allocated:
    (not kept: the policy keeps 0 frames)
  leak 2 of 2: 64 bytes in 1 block, 0x*, allocated:
    (not kept: the policy keeps 0 frames)
  hint: every allocate needs one deallocate; look for an owner that is never destroyed

)"},
    {double_free, R"(pmr_debug: double_free: 64-byte block 0x* was freed twice
  resource   "index" (general_purpose_resource #3 at 0x*)
  block      0x*, 64 bytes, alignment 16, serial 12, freed
  given      size 64, alignment 16
  threads    reported by 2, allocated by 1, freed by 4
  allocated by thread 1:
    (not kept: the policy keeps 0 frames)
  first freed by thread 4:
    (not kept: the policy keeps 0 frames)
  hint: two owners hold this pointer; one of them must give it up

)"},
    {invalid_free, R"(pmr_debug: invalid_free: 0x* is no block of any pmr_debug resource
  resource   "index" (general_purpose_resource #3 at 0x*)
  nearest    0x*, 64 bytes, alignment 16, serial 12, live
  pointer    0x*, 4096 bytes past the end of the nearest block
  given      size 32, alignment 8
  threads    reported by 2, allocated by 1
  nearest block allocated by thread 1:
    (not kept: the policy keeps 0 frames)
  hint: it comes from malloc, new, the stack, or a resource that is not of this library

)"},
    {interior_free, R"(pmr_debug: interior_free: 0x* points 16 bytes into the 64-byte block 0x*, not at its start
  resource   "index" (general_purpose_resource #3 at 0x*)
  block      0x*, 64 bytes, alignment 16, serial 12, live
  pointer    0x*, 16 bytes into the block
  given      size 64, alignment 16
  threads    reported by 2, allocated by 1
  allocated by thread 1:
    (not kept: the policy keeps 0 frames)
  hint: deallocate needs the address that allocate returned

)"},
    {null_free, R"(pmr_debug: null_free: a null pointer was deallocated as 32 bytes
  resource   "index" (general_purpose_resource #3 at 0x*)
  given      size 32, alignment 8
  threads    reported by 2
  hint: pmr deallocate, unlike free and delete, takes no null pointer

)"},
    {wrong_resource, R"(pmr_debug: wrong_resource: 64-byte block 0x* of tracking_resource #7 was freed through "index"
  resource   "index" (general_purpose_resource #3 at 0x*)
  owner      tracking_resource #7 at 0x*
  block      0x*, 64 bytes, alignment 16, serial 12, live
  given      size 64, alignment 16
  threads    reported by 2, allocated by 1
  allocated by thread 1:
    (not kept: the policy keeps 0 frames)
  hint: a container was moved, swapped or assigned between resources, or two allocators were mixed up

)"},
    {size_mismatch, R"(pmr_debug: size_mismatch: block allocated with 64 bytes, deallocated with 32
  resource   "index" (general_purpose_resource #3 at 0x*)
  block      0x*, 64 bytes, alignment 16, serial 12, live
  given      size 32, alignment 16
  recorded   size 64, alignment 16
  threads    reported by 2, allocated by 1
  allocated by thread 1:
    (not kept: the policy keeps 0 frames)
  hint: deallocate needs the size given to allocate; look for a delete through a base class, or a size that changed meanwhile

)"},
    {alignment_mismatch, R"(pmr_debug: alignment_mismatch: block allocated with alignment 16, deallocated with 8
  resource   "index" (general_purpose_resource #3 at 0x*)
  block      0x*, 64 bytes, alignment 16, serial 12, live
  given      size 64, alignment 8
  recorded   size 64, alignment 16
  threads    reported by 2, allocated by 1
  allocated by thread 1:
    (not kept: the policy keeps 0 frames)
  hint: deallocate needs the alignment given to allocate

)"},
    {overrun, R"(pmr_debug: overrun: 64-byte block 0x* was written past its end: 5 bytes changed, the first one 3 bytes past its end
  resource   "index" (general_purpose_resource #3 at 0x*)
  block      0x*, 64 bytes, alignment 16, serial 12, live
  first bad  0x*, 3 bytes past the end of the block: found 0x*, expected 0x*; 5 bytes damaged
  threads    reported by 2, allocated by 1
  allocated by thread 1:
    (not kept: the policy keeps 0 frames)
  hint: an index or length is too large; look at what writes to the end of this block

)"},
    {underrun, R"(pmr_debug: underrun: 64-byte block 0x* was written before its start: 1 byte changed, the first one 8 bytes before it
  resource   "index" (general_purpose_resource #3 at 0x*)
  block      0x*, 64 bytes, alignment 16, serial 12, live
  first bad  0x*, 8 bytes before the block: found 0x*, expected 0x*; 1 byte damaged
  threads    reported by 2, allocated by 1
  allocated by thread 1:
    (not kept: the policy keeps 0 frames)
  hint: an index is negative; look at what writes to the start of this block

)"},
    {use_after_free, R"(pmr_debug: use_after_free: freed 64-byte block 0x* was accessed 24 bytes into it
  resource   "index" (general_purpose_resource #3 at 0x*)
  block      0x*, 64 bytes, alignment 16, serial 12, freed
  pointer    0x*, 24 bytes into the block
  threads    reported by 2, allocated by 1, freed by 4
  allocated by thread 1:
    (not kept: the policy keeps 0 frames)
  freed by thread 4:
    (not kept: the policy keeps 0 frames)
  hint: a pointer or reference outlived the block

)"},
    {write_after_free, R"(pmr_debug: write_after_free: freed 64-byte block 0x* was written to: 4 bytes changed, the first one 16 bytes into it
  resource   "index" (general_purpose_resource #3 at 0x*)
  block      0x*, 64 bytes, alignment 16, serial 12, freed
  first bad  0x*, 16 bytes into the block: found 0x*, expected 0x*; 4 bytes damaged
  threads    reported by 2, allocated by 1, freed by 4
  allocated by thread 1:
    (not kept: the policy keeps 0 frames)
  freed by thread 4:
    (not kept: the policy keeps 0 frames)
  hint: someone kept a pointer after the free and wrote through it

)"},
    {foreign_thread, R"(pmr_debug: foreign_thread: "index" belongs to thread 1, but was used by thread 2
  resource   "index" (general_purpose_resource #3 at 0x*)
  threads    reported by 2, bound to 1
  other use by thread 1:
    (not kept: the policy keeps 0 frames)
  hint: give each thread its own resource, or use threading::synchronized; work that moves from thread to thread calls rebind_thread() of the resource where the next one takes over

)"},
    {destroyed_resource, R"(pmr_debug: destroyed_resource: 64-byte block 0x* was freed after the destruction of "index"
  resource   "index" (general_purpose_resource #3 at 0x*), destroyed
  block      0x*, 64 bytes, alignment 16, serial 12, live
  given      size 64, alignment 16
  threads    reported by 2, allocated by 1
  allocated by thread 1:
    (not kept: the policy keeps 0 frames)
  resource constructed:
    (not kept)
  resource destroyed:
    (not kept)
  hint: the resource must outlive all that allocates from it

)"},
    {live_at_destruction, R"(pmr_debug: live_at_destruction: 20064 bytes (19.6 KiB) in 101 blocks were in use when the memory of "index" went away
  resource   "index" (general_purpose_resource #3 at 0x*)
  threads    reported by 2
  leak 1 of 2: 20000 bytes (19.5 KiB) in 100 blocks, for example 0x* (200 bytes), allocated:
    (not kept: the policy keeps 0 frames)
  leak 2 of 2: 64 bytes in 1 block, 0x*, allocated:
    (not kept: the policy keeps 0 frames)
  hint: the blocks' owners must be destroyed before their resource

)"},
    {bad_alignment, R"(pmr_debug: bad_alignment: request of 64 bytes with alignment 3, which is no power of two
  resource   "index" (general_purpose_resource #3 at 0x*)
  requested  size 64, alignment 3
  threads    reported by 2
  hint: alignments are 1, 2, 4, 8 …

)"},
    {upstream_null, R"(pmr_debug: upstream_null: upstream returned null for a request of 64 bytes with alignment 16
  resource   "index" (general_purpose_resource #3 at 0x*)
  requested  size 64, alignment 16
  threads    reported by 2
  hint: a memory_resource must throw std::bad_alloc instead of returning null

)"},
    {upstream_misaligned, R"(pmr_debug: upstream_misaligned: upstream returned 0x*, which is not aligned, for a request of 64 bytes with alignment 16
  resource   "index" (general_purpose_resource #3 at 0x*)
  pointer    0x*
  requested  size 64, alignment 16
  threads    reported by 2
  hint: the upstream resource ignores the alignment it is asked for

)"},
    {upstream_overlap, R"(pmr_debug: upstream_overlap: upstream returned 0x*, which is in use, for a request of 128 bytes with alignment 16
  resource   "index" (general_purpose_resource #3 at 0x*)
  block      0x*, 64 bytes, alignment 16, serial 12, live
  pointer    0x*, 32 bytes into the block
  requested  size 128, alignment 16
  threads    reported by 2, allocated by 1
  allocated by thread 1:
    (not kept: the policy keeps 0 frames)
  hint: the upstream resource handed out the same memory twice

)"},
    {limit_exceeded, R"(pmr_debug: limit_exceeded: request of 8 bytes with alignment 8 exceeds the limit of 1010, 1004 in use
  resource   "index" (general_purpose_resource #3 at 0x*)
  requested  size 8, alignment 8
  threads    reported by 2
  limit      1010, 1004 in use
  hint: raise the limit in the options, or look for what takes so much

)"},
    {arena_overflow, R"(pmr_debug: arena_overflow: request of 512 bytes with alignment 16 does not fit the buffer of 1024 bytes, 600 in use
  resource   "index" (general_purpose_resource #3 at 0x*)
  requested  size 512, alignment 16
  threads    reported by 2
  limit      1024, 600 in use
  hint: make the buffer larger, or give the resource an upstream

)"},
    {out_of_order_rewind, R"(pmr_debug: out_of_order_rewind: a mark was rewound out of order
  resource   "index" (general_purpose_resource #3 at 0x*)
  threads    reported by 2
  hint: rewind marks in the opposite order of their making

)"},
    {default_resource_used, R"(pmr_debug: default_resource_used: the default resource was used where it is forbidden: request of 24 bytes with alignment 8
  resource   "index" (general_purpose_resource #3 at 0x*)
  requested  size 24, alignment 8
  threads    reported by 2
  hint: pass a resource to the container or object that allocates here

)"},
    {null_upstream, R"(pmr_debug: null_upstream: "index" was constructed with a null upstream
  resource   "index" (general_purpose_resource)
  threads    reported by 2
  hint: pass a resource that exists, such as std::pmr::new_delete_resource()

)"},
    {cycle, R"(pmr_debug: cycle: the upstream chain of "index" leads back to itself
  resource   "index" (general_purpose_resource #3 at 0x*)
  threads    reported by 2
  hint: a resource was made the upstream of one of its own upstreams

)"},
    {fault, R"(pmr_debug: fault: 0x* was read: a null pointer
  resource   "index" (general_purpose_resource #3 at 0x*)
  pointer    0x*
  threads    reported by 2
  hint: look at what the first frame reads or writes, and where its address comes from

)"},
};
// clang-format on

TEST(error_kind_names, are_distinct_and_as_many_as_there_are_kinds) {
    std::set<std::string_view> names;
    for (std::size_t i = 0; i < error_kind_count; ++i) {
        const std::string_view name = to_string(static_cast<error_kind>(i));
        EXPECT_NE(name, "unknown");
        EXPECT_TRUE(std::all_of(name.begin(), name.end(), [](char c) { return c == '_' || (c >= 'a' && c <= 'z'); }));
        names.insert(name);
    }
    EXPECT_EQ(names.size(), error_kind_count);
    EXPECT_EQ(error_kind_count, 26U);
    EXPECT_EQ(to_string(static_cast<error_kind>(error_kind_count)), "unknown");
    EXPECT_EQ(to_string(double_free), "double_free");
}

TEST(report_text, of_every_kind_is_as_agreed) {
    std::set<error_kind> seen;
    for (const golden& g : texts) {
        EXPECT_EQ(mask(text_of(sample(g.kind))), g.text);
        seen.insert(g.kind);
    }
    EXPECT_EQ(seen.size(), error_kind_count);
}

TEST(report_text, gives_addresses_and_bytes_in_hex) {
    const std::string text = text_of(sample(overrun));
    EXPECT_TRUE(contains(text,
                         "  first bad  0x7f0000001043, 3 bytes past the end of the block: found 0x41, expected "
                         "0xaa; 5 bytes damaged\n"))
        << text;
}

TEST(report_text, says_where_a_pointer_lies) {
    report r = sample(invalid_free);
    r.pointer = at(test_support::block_address - 32);
    EXPECT_TRUE(contains(text_of(r), "32 bytes before the nearest block\n"));
    r.pointer = at(test_support::block_address + 72);
    EXPECT_TRUE(contains(text_of(r), "8 bytes past the end of the nearest block\n"));
    r.nearest_only = false;
    r.pointer = at(test_support::block_address + 1);
    EXPECT_TRUE(contains(text_of(r), "1 byte into the block\n"));
}

TEST(report_text, prefers_the_reporters_hint) {
    report r = sample(leak);
    r.hint = "look in the attic";
    EXPECT_TRUE(contains(text_of(r), "  hint: look in the attic\n"));
    EXPECT_FALSE(contains(text_of(r), "every allocate"));
}

TEST(report_text, keeps_a_hostile_name_on_its_line) {
    report r = sample(leak);
    r.resource.name = "a\n\"b\x1b[2J";
    EXPECT_TRUE(contains(text_of(r), R"("a\x0a\"b\x1b[2J")"));
}

TEST(report_text, tells_the_life_of_a_dead_owner) {
    report r = sample(wrong_resource);
    r.owner.alive = false;
    r.owner.born = outer_function();
    r.owner.died = inner_function();
    const std::string text = mask(text_of(r));
    const std::size_t born = text.find("  resource constructed:\n    #0 ");
    const std::size_t died = text.find("  resource destroyed:\n    #0 ");
    ASSERT_NE(born, std::string::npos) << text;
    ASSERT_NE(died, std::string::npos) << text;
    EXPECT_NE(text.find("outer_function", born), std::string::npos);
    EXPECT_LT(text.find("outer_function", born), died);
    EXPECT_EQ(text.find("outer_function", died), std::string::npos);
    EXPECT_TRUE(contains(text, "tracking_resource #7 at 0x*, destroyed\n"));
}

TEST(report_text, shows_each_trace_under_its_title) {
    report r = sample(double_free);
    r.here = outer_function();
    r.allocated = outer_function();
    r.freed = inner_function();
    const std::string text = mask(text_of(r));
    const std::size_t here = text.find("  here:\n    #0 ");
    const std::size_t allocated = text.find("  allocated by thread 1:\n    #0 ");
    const std::size_t freed = text.find("  first freed by thread 4:\n    #0 ");
    ASSERT_NE(here, std::string::npos) << text;
    ASSERT_NE(allocated, std::string::npos) << text;
    ASSERT_NE(freed, std::string::npos) << text;
    EXPECT_LT(here, allocated);
    EXPECT_LT(allocated, freed);
    EXPECT_TRUE(contains(text, "inner_function()  report_text_test.cpp\n")) << text;
    EXPECT_TRUE(contains(text, "    #1 ")) << text;
    EXPECT_FALSE(contains(text, "capture_trace")) << text;  // the library's own frame
    EXPECT_FALSE(contains(text, "not kept")) << text;

    report bound = sample(foreign_thread);
    bound.other = outer_function();
    EXPECT_TRUE(contains(text_of(bound), "  other use by thread 1:\n    #0 "));
}

TEST(report_text, stops_at_the_most_frames_and_says_so) {
    report r = sample(leak);
    r.here = outer_function();
    const std::string text = text_of(r, {.max_frames = 1});
    EXPECT_TRUE(contains(text, "    #0 "));
    EXPECT_FALSE(contains(text, "    #1 "));
    EXPECT_TRUE(contains(text, "more frame")) << text;
}

TEST(report_text, says_where_a_trace_is_cut_short) {
    report r = sample(double_free);
    r.here = outer_function();
    EXPECT_FALSE(contains(text_of(r), "cut short"));
    r.here = test_support::cut_trace();
    ASSERT_TRUE(view(r.here).flags.cut_short);
    EXPECT_TRUE(contains(text_of(r), "    (trace cut short: no unwind data)\n"));
}

TEST(report_text, says_where_a_trace_rests_on_frame_pointers) {
    report r = sample(double_free);
    r.here = outer_function();
    EXPECT_FALSE(contains(text_of(r), "unverified"));
    r.here = test_support::cut_trace(stack::is_unverified);
    ASSERT_TRUE(view(r.here).flags.unverified);
    EXPECT_TRUE(contains(text_of(r), "    (unverified: code without unwind data, by its frame pointers)\n"));
}

TEST(report_text, without_symbols_shows_addresses_only) {
    report r = sample(leak);
    r.here = outer_function();
    std::string text;
    detail::write_text(r, {}, detail::symbols::raw, test_support::append, &text);
    EXPECT_TRUE(contains(mask(text), "  here:\n    #0 0x*\n    #1 0x*\n")) << text;
    EXPECT_FALSE(contains(text, "outer_function"));
}

TEST(report_text, caps_the_list_of_leaks) {
    std::vector<leak_group> groups(7, {.blocks = 3, .bytes = 30, .example_size = 10});
    report r = sample(leak);
    r.leaks = groups;
    r.leaked_blocks = 21;
    r.leaked_bytes = 210;
    const std::string text = text_of(r, {.max_leak_groups = 5});
    EXPECT_TRUE(contains(text, "  leak 5 of 7: 30 bytes in 3 blocks, for example 0x0 (10 bytes), allocated:\n"));
    EXPECT_FALSE(contains(text, "leak 6"));
    EXPECT_TRUE(contains(text, "  … and 2 more call paths (60 bytes in 6 blocks)\n")) << text;
    EXPECT_TRUE(contains(text_of(r, {.max_leak_groups = 6}), "  … and 1 more call path (30 bytes in 3 blocks)\n"));
    EXPECT_FALSE(contains(text_of(r, {.max_leak_groups = 7}), "more call path"));
}

TEST(report_text, in_colour_is_the_plain_text_and_escapes) {
    report r = sample(double_free);
    r.here = outer_function();
    const std::string coloured = text_of(r, {.colour = true});
    EXPECT_TRUE(coloured.starts_with("\x1b[1;31mpmr_debug: double_free"));
    EXPECT_TRUE(text_of(sample(leak), {.colour = true}).starts_with("\x1b[1;33mpmr_debug: leak"));
    std::string stripped;
    for (std::size_t i = 0; i < coloured.size(); ++i) {
        if (coloured[i] == '\x1b') {
            i = coloured.find('m', i);
        } else {
            stripped += coloured[i];
        }
    }
    EXPECT_EQ(stripped, text_of(r));
    EXPECT_FALSE(contains(stripped, "\x1b"));
}

TEST(report_text, comes_in_pieces_of_any_length) {
    // Headline and rows pass the writer's buffer several times; nothing is lost at its borders.
    report r = sample(leak);
    std::vector<leak_group> groups(100, {.blocks = 1, .bytes = 1, .example_size = 1});
    r.leaks = groups;
    const std::string text = text_of(r, {.max_leak_groups = 100});
    for (int i = 1; i <= 100; ++i) {
        EXPECT_TRUE(contains(text, "  leak " + std::to_string(i) + " of 100: 1 byte in 1 block, 0x0, allocated:\n"));
    }
}

std::string frame_line(const resolved_frame& frame) {
    return written([&](detail::writer& out) { detail::write_frame(out, frame, 3, false); });
}

TEST(frame_line, shows_the_best_that_is_known) {
    resolved_frame f;
    f.address = 0x7f01;
    EXPECT_EQ(frame_line(f), "    #3 0x7f01\n");
    f.module = "/usr/lib/libx.so";
    f.module_offset = 0x123;
    EXPECT_EQ(frame_line(f), "    #3 /usr/lib/libx.so+0x123\n");
    f.function = "parse(int)";
    EXPECT_EQ(frame_line(f), "    #3 parse(int)  /usr/lib/libx.so+0x123\n");
    f.file = "src/parse.cpp";
    EXPECT_EQ(frame_line(f), "    #3 parse(int)  src/parse.cpp\n");
    f.line = 12;
    EXPECT_EQ(frame_line(f), "    #3 parse(int)  src/parse.cpp:12\n");
    f.inlined = true;
    EXPECT_EQ(frame_line(f), "    #3 parse(int)  src/parse.cpp:12 (inlined)\n");
}

TEST(frame_line, cuts_only_very_long_names) {
    const auto line_of = [](const std::string& name) {
        resolved_frame f;
        f.function = name.c_str();
        f.file = "a.cpp";
        return frame_line(f);
    };
    const std::string kept = "f<" + std::string(196, 'x') + ">(";
    ASSERT_EQ(kept.size(), 200U);
    EXPECT_EQ(line_of(kept), "    #3 " + kept + "  a.cpp\n");
    const std::string cut = line_of("first_" + std::string(5000, 'x') + "_last()");
    EXPECT_TRUE(cut.starts_with("    #3 first_xxx"));
    EXPECT_TRUE(contains(cut, "x…x"));
    EXPECT_TRUE(cut.ends_with("_last()  a.cpp\n"));
    EXPECT_LE(cut.size(), 220U);
    // Two-byte characters at either parity of the cut stay whole.
    for (const std::string& start : {std::string("a"), std::string("ab")}) {
        std::string name = start;
        for (int i = 0; i < 300; ++i) {
            name += "ä";
        }
        std::string line = line_of(name);
        line.erase(line.find("…"), std::string_view("…").size());
        std::size_t letters = 0;
        for (std::size_t i = line.find("ä"); i != std::string::npos; i = line.find("ä", i + 2)) {
            ++letters;
        }
        const auto high = std::count_if(line.begin(), line.end(), [](char c) { return c < 0; });
        EXPECT_EQ(static_cast<std::size_t>(high), 2 * letters);
    }
}

TEST(writer, formats_numbers) {
    const auto number = [](std::uint64_t n) { return written([&](detail::writer& w) { w.number(n); }); };
    EXPECT_EQ(number(0), "0");
    EXPECT_EQ(number(1234567890), "1234567890");
    EXPECT_EQ(number(std::numeric_limits<std::uint64_t>::max()), "18446744073709551615");
    const auto negative = [](std::int64_t n) { return written([&](detail::writer& w) { w.signed_number(n); }); };
    EXPECT_EQ(negative(-8), "-8");
    EXPECT_EQ(negative(8), "8");
    EXPECT_EQ(negative(std::numeric_limits<std::int64_t>::min()), "-9223372036854775808");
    const auto hex = [](std::uint64_t n) { return written([&](detail::writer& w) { w.hex(n, 2); }); };
    EXPECT_EQ(hex(0), "0x00");
    EXPECT_EQ(hex(0xdeadbeef), "0xdeadbeef");
    EXPECT_EQ(hex(std::numeric_limits<std::uint64_t>::max()), "0xffffffffffffffff");
}

TEST(writer, formats_sizes) {
    const auto rounded = [](std::uint64_t n) { return written([&](detail::writer& w) { w.rounded_bytes(n); }); };
    EXPECT_EQ(rounded(0), "0 bytes");
    EXPECT_EQ(rounded(1), "1 byte");
    EXPECT_EQ(rounded(1023), "1023 bytes");
    EXPECT_EQ(rounded(1024), "1.0 KiB");
    EXPECT_EQ(rounded(1536), "1.5 KiB");
    EXPECT_EQ(rounded(1258291), "1.2 MiB");
    EXPECT_EQ(rounded(1024 * 1024 - 1), "1.0 MiB");
    EXPECT_EQ(rounded(std::uint64_t{3} << 40), "3.0 TiB");
    EXPECT_EQ(rounded(std::numeric_limits<std::uint64_t>::max()), "16.0 EiB");
    const auto exact = [](std::uint64_t n) { return written([&](detail::writer& w) { w.bytes(n); }); };
    EXPECT_EQ(exact(1), "1 byte");
    EXPECT_EQ(exact(10'239), "10239 bytes");
    EXPECT_EQ(exact(10'240), "10240 bytes (10.0 KiB)");
}

TEST(writer, passes_text_of_any_length_through_its_buffer) {
    std::string long_text;
    for (int i = 0; i < 2000; ++i) {
        long_text += static_cast<char>('a' + i % 26);
    }
    EXPECT_EQ(written([&](detail::writer& w) { w.text(long_text).put('!').text(long_text); }),
              long_text + "!" + long_text);
}

TEST(fixed_text, keeps_what_fits) {
    detail::fixed_text<8> text;
    detail::fixed_text<8>::sink("abcdef", &text);
    detail::fixed_text<8>::sink("ghijkl", &text);
    EXPECT_EQ(text.view(), "abcdefgh");
}

TEST(mask_for_tests, hides_what_changes_from_run_to_run) {
    EXPECT_EQ(mask("#0 f(int)  /home/x/a.cpp:12 (inlined)\n0x7f01, 12 bytes"),
              "#0 f(int)  a.cpp (inlined)\n0x*, 12 bytes");
}

}  // namespace
