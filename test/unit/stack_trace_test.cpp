#include <pmr_debug/stack_trace.hpp>

#include "stack/capture.hpp"
#include "stack/frame_class.hpp"
#include "support/trace_names.hpp"

#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

// Code without unwind information: one that keeps a frame pointer and one that does not.
extern "C" void call_with_frame_pointer_only(void (*function)());
extern "C" void call_with_nothing(void (*function)());
asm(R"(
.pushsection .text
.globl call_with_frame_pointer_only
.type call_with_frame_pointer_only, @function
call_with_frame_pointer_only:
    push %rbp
    mov %rsp, %rbp
    call *%rdi
    pop %rbp
    ret
.size call_with_frame_pointer_only, . - call_with_frame_pointer_only
.globl call_with_nothing
.type call_with_nothing, @function
call_with_nothing:
    push %rbp
    xor %ebp, %ebp
    call *%rdi
    pop %rbp
    ret
.size call_with_nothing, . - call_with_nothing

# With unwind information but no frame pointers: a function that leaves no trail, and two thread functions that call it.
.macro no_frame_pointer name, callee
.globl \name
.type \name, @function
\name:
    .cfi_startproc
    push %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbp, 0
    xor %ebp, %ebp
    call \callee
    xor %eax, %eax
    pop %rbp
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbp
    ret
    .cfi_endproc
.size \name, . - \name
.endm
no_frame_pointer leave_no_trail, *%rdi
no_frame_pointer one_thread, leave_no_trail
no_frame_pointer other_thread, leave_no_trail
.popsection
)");
extern "C" void* one_thread(void* function);
extern "C" void* other_thread(void* function);

namespace {

using pmr_debug::capture_trace;
using pmr_debug::depot_stats;
using pmr_debug::trace_id;
using pmr_debug::view;
using trace_test::frames_of;
using trace_test::in_order;
using trace_test::text;

#define NOINLINE __attribute__((noinline))

// Unknown to the compiler, which would otherwise unroll loops, and so make several call sites of one.
volatile int three = 3;

NOINLINE trace_id here(unsigned frames) {
    const trace_id id = capture_trace(frames);
    asm volatile("");
    return id;
}

NOINLINE trace_id below(unsigned levels, unsigned frames) {
    const trace_id id = levels == 0 ? here(frames) : below(levels - 1, frames);
    asm volatile("");
    return id;
}

TEST(capture_trace, keeps_no_more_frames_than_asked_for) {
    EXPECT_EQ(below(80, 0), trace_id::none);
    for (const unsigned frames : {1U, 2U, 7U, 8U, 63U, 64U}) {
        const auto trace = view(below(80, frames));
        EXPECT_EQ(trace.frames.size(), frames);
        EXPECT_TRUE(trace.flags.depth_reached);
        EXPECT_FALSE(trace.flags.cut_short);
    }
    EXPECT_EQ(view(below(80, 65)).frames.size(), 64U);
    EXPECT_EQ(view(below(80, 0xFFFF'FFFF)).frames.size(), 64U);
}

TEST(capture_trace, same_path_same_id_other_path_other_id) {
    std::vector<trace_id> ids;
    for (int i = 0; i < three; ++i) {
        ids.push_back(below(3, 8));
    }
    EXPECT_EQ(ids[0], ids[1]);
    EXPECT_EQ(ids[0], ids[2]);
    EXPECT_NE(ids[0], below(3, 8));
    EXPECT_NE(ids[0], below(4, 64));
}

TEST(capture_trace, a_shorter_trace_is_the_start_of_a_longer_one) {
    trace_id ids[2];
    for (int i = 1; i < three; ++i) {
        ids[i - 1] = below(5, i == 1 ? 4 : 12);
    }
    const auto shorter = view(ids[0]).frames;
    const auto longer = view(ids[1]).frames;
    ASSERT_EQ(shorter.size(), 4U);
    EXPECT_GT(longer.size(), shorter.size());
    EXPECT_TRUE(std::equal(shorter.begin(), shorter.end(), longer.begin()));
}

NOINLINE trace_id third(unsigned frames) {
    const trace_id id = here(frames);
    asm volatile("");
    return id;
}
NOINLINE trace_id second(unsigned frames) {
    const trace_id id = third(frames);
    asm volatile("");
    return id;
}

TEST(capture_trace, begins_with_its_caller_and_goes_outwards) {
    const auto frames = frames_of(second(4));
    ASSERT_GE(frames.size(), 4U);
    EXPECT_TRUE(trace_test::is(frames[0], "here")) << text(frames);
    EXPECT_TRUE(in_order(frames, {"here", "third", "second", "TestBody"})) << text(frames);
}

TEST(capture_trace, shows_each_level_of_a_recursion) {
    const auto frames = frames_of(below(6, 8));
    EXPECT_TRUE(in_order(frames, {"here", "below", "below", "below", "below", "below", "below", "below"}))
        << text(frames);
}

TEST(capture_trace, ends_where_the_programs_own_code_begins) {
    trace_id from_main = here(64);
    trace_id from_thread[2] = {};
    std::thread([&] {
        for (int i = 1; i < three; ++i) {
            from_thread[i - 1] = here(64);
        }
    }).join();
    EXPECT_TRUE(in_order(frames_of(from_main), {"here", "TestBody", "main"})) << text(frames_of(from_main));
    EXPECT_EQ(from_thread[0], from_thread[1]);
    for (const trace_id id : {from_main, from_thread[0]}) {
        EXPECT_FALSE(view(id).flags.depth_reached);
        EXPECT_FALSE(view(id).flags.cut_short);
        EXPECT_FALSE(in_order(frames_of(id), {"start_call_main"})) << text(frames_of(id));
        EXPECT_FALSE(in_order(frames_of(id), {"clone"})) << text(frames_of(id));
    }
}

TEST(capture_trace, a_known_chain_needs_no_unwinder) {
    std::uint64_t walks[3] = {};
    std::thread([&] {
        for (int i = 0; i < three; ++i) {  // one call site, near the end of the thread's stack
            here(16);
            walks[i] = depot_stats().slow_walks;
        }
    }).join();
    EXPECT_EQ(walks[1], walks[0]);
    EXPECT_EQ(walks[2], walks[0]);
}

NOINLINE trace_id call(const std::function<trace_id()>& f) {
    const trace_id id = f();
    asm volatile("");
    return id;
}
/// A call through std::function: frames of the standard library between two of the program.
NOINLINE trace_id through_std(unsigned levels, unsigned frames) {
    if (levels == 0) {
        return here(frames);
    }
    const std::function<trace_id()> next = [=] {
        const trace_id id = through_std(levels - 1, frames);
        asm volatile("");
        return id;
    };
    const trace_id id = call(next);
    asm volatile("");
    return id;
}

TEST(capture_trace, counts_frames_of_the_program) {
    for (const unsigned frames : {1U, 4U, 9U}) {
        const trace_id id = through_std(12, frames);
        std::size_t of_program = 0;
        for (const auto& f : frames_of(id)) {
            of_program += !f.inlined && f.function.starts_with("(anonymous namespace)::") ? 1 : 0;
        }
        EXPECT_EQ(of_program, frames) << text(frames_of(id));
        EXPECT_TRUE(view(id).flags.depth_reached);
        EXPECT_TRUE(trace_test::is(frames_of(id)[0], "here"));
    }
    EXPECT_EQ(view(through_std(100, 64)).frames.size(), 64U) << "the most there may be";
}

TEST(frame_class, is_told_by_the_mangled_name) {
    using pmr_debug::stack::is_library_symbol;
    for (const char* const name :
         {"_ZSt4sortIPiEvT_S1_", "_ZNSt6vectorIiSaIiEE9push_backERKi", "_ZNKSt6vectorIiSaIiEE4sizeEv", "_ZNSaIcEC1Ev",
          "_ZNSs6appendEPKc", "_ZN9__gnu_cxx13new_allocatorIcE8allocateEmPKv", "_Znwm", "_ZdlPvm", "_ZNSolsEi",
          "_ZZNSt8functionIFvvEEC1IZ4mainEUlvE_EENKUlvE_clEv", "_ZN9pmr_debug13page_resource5checkEv",
          "_ZThn8_N9pmr_debug6reportD0Ev", "_ZTv0_n24_NSoD0Ev", "_ZNSt3__16vectorIiE5clearEv"}) {
        EXPECT_TRUE(is_library_symbol(name)) << name;
    }
    for (const char* const name :
         {"main", "_Z3foov", "_ZN3app4mainEv", "_ZZ4mainENKUlvE_clEv", "_ZN5St3uffE", "qsort", "_ZN3St33fooEv", "",
          "_Z", "_ZN12_GLOBAL__N_13fooESt6vectorIiSaIiEE", "_ZN10pmr_debugs3fooEv", "_ZThn8_N3app6reportD0Ev"}) {
        EXPECT_FALSE(is_library_symbol(name)) << name;
    }
}

trace_id from_callback = trace_id::none;

NOINLINE int compare_and_capture(const void*, const void*) {
    from_callback = here(32);
    asm volatile("");
    return 0;
}
NOINLINE void sort_one() {
    int values[2] = {1, 2};
    std::qsort(values, 2, sizeof values[0], compare_and_capture);
    asm volatile("");
}
NOINLINE void sort_other() {
    int values[2] = {1, 2};
    std::qsort(values, 2, sizeof values[0], compare_and_capture);
    asm volatile("" ::"r"(&values));
}

// The C library keeps no frame pointers: those found in the callback skip frames, and are the same for both callers.
TEST(capture_trace, goes_through_code_without_frame_pointers) {
    for (int i = 0; i < three; ++i) {
        sort_one();
        const auto one = frames_of(from_callback);
        EXPECT_TRUE(in_order(one, {"here", "compare_and_capture", "sort_one", "TestBody", "main"})) << text(one);
        EXPECT_FALSE(in_order(one, {"sort_other"})) << text(one);
        EXPECT_FALSE(view(from_callback).flags.cut_short);
        sort_other();
        const auto other = frames_of(from_callback);
        EXPECT_TRUE(in_order(other, {"here", "compare_and_capture", "sort_other", "TestBody", "main"})) << text(other);
    }
}

trace_id from_asm = trace_id::none;
NOINLINE void capture_from_asm() {
    from_asm = here(32);
    asm volatile("");
}

// The same frames on the same stack, but for one further out.
TEST(capture_trace, tells_threads_apart_that_frame_pointers_show_alike) {
    for (int i = 0; i < three; ++i) {
        for (const bool first : {true, false}) {
            pthread_t thread{};
            ASSERT_EQ(pthread_create(&thread, nullptr, first ? one_thread : other_thread,
                                     reinterpret_cast<void*>(&capture_from_asm)),
                      0);
            pthread_join(thread, nullptr);
            const auto frames = frames_of(from_asm);
            EXPECT_TRUE(
                in_order(frames, {"here", "capture_from_asm", "leave_no_trail", first ? "one_thread" : "other_thread"}))
                << text(frames);
            EXPECT_FALSE(view(from_asm).flags.cut_short);
        }
    }
}

TEST(capture_trace, says_when_it_is_cut_short) {
    const std::uint64_t before = depot_stats().cut_short;
    for (int i = 1; i < three; ++i) {
        call_with_nothing(capture_from_asm);
        EXPECT_TRUE(view(from_asm).flags.cut_short);
        EXPECT_TRUE(in_order(frames_of(from_asm), {"here", "capture_from_asm", "call_with_nothing"}))
            << text(frames_of(from_asm));
        EXPECT_FALSE(in_order(frames_of(from_asm), {"main"}));
    }
    EXPECT_EQ(depot_stats().cut_short, before + 1);
}

TEST(capture_trace, without_unwind_information_it_ends_unless_frame_pointers_are_promised) {
    const auto* const begin = reinterpret_cast<const char*>(&call_with_frame_pointer_only);
    for (int i = 0; i < three; ++i) {
        call_with_frame_pointer_only(capture_from_asm);
        EXPECT_TRUE(view(from_asm).flags.cut_short);
        EXPECT_FALSE(view(from_asm).flags.unverified);
        EXPECT_TRUE(in_order(frames_of(from_asm), {"here", "capture_from_asm", "call_with_frame_pointer_only"}));
        EXPECT_FALSE(in_order(frames_of(from_asm), {"TestBody"})) << text(frames_of(from_asm));
        ASSERT_TRUE(pmr_debug::trace_by_frame_pointers(begin, begin + 16));
        for (int n = 0; n < three; ++n) {
            call_with_frame_pointer_only(capture_from_asm);
            EXPECT_FALSE(view(from_asm).flags.cut_short);
            EXPECT_TRUE(view(from_asm).flags.unverified);
            EXPECT_TRUE(in_order(frames_of(from_asm),
                                 {"here", "capture_from_asm", "call_with_frame_pointer_only", "TestBody", "main"}))
                << text(frames_of(from_asm));
        }
        pmr_debug::forget_frame_pointers(begin);
    }
}

TEST(capture_trace, takes_64_ranges_of_code_that_keeps_frame_pointers) {
    static const char code[65] = {};
    EXPECT_FALSE(pmr_debug::trace_by_frame_pointers(code, code));
    EXPECT_FALSE(pmr_debug::trace_by_frame_pointers(nullptr, code));
    for (int i = 0; i < 64; ++i) {
        EXPECT_TRUE(pmr_debug::trace_by_frame_pointers(code + i, code + i + 1));
    }
    EXPECT_FALSE(pmr_debug::trace_by_frame_pointers(code + 64, code + 65));
    for (int i = 0; i < 64; ++i) {
        pmr_debug::forget_frame_pointers(code + i);
    }
}

TEST(capture_trace, threads_get_equal_ids_for_equal_paths) {
    constexpr int count = 8;
    std::vector<std::vector<trace_id>> ids(count);
    std::vector<std::thread> threads;
    for (auto& mine : ids) {
        threads.emplace_back([&mine] {
            for (unsigned round = 0; round < 200; ++round) {
                mine.push_back(below(round % 50, 8 + round % 40));
            }
        });
    }
    for (auto& t : threads) {
        t.join();
    }
    for (int i = 1; i < count; ++i) {
        EXPECT_EQ(ids[0], ids[static_cast<std::size_t>(i)]);
    }
}

ucontext_t main_context;
ucontext_t fiber_context;
trace_id from_fiber = trace_id::none;

NOINLINE void fiber() {
    from_fiber = below(3, 16);
    asm volatile("");
}

TEST(capture_trace, works_on_a_fiber) {
    constexpr std::size_t bytes = 256 * 1024;
    const auto stack = std::make_unique<char[]>(bytes);
    ASSERT_EQ(getcontext(&fiber_context), 0);
    fiber_context.uc_stack.ss_sp = stack.get();
    fiber_context.uc_stack.ss_size = bytes;
    fiber_context.uc_link = &main_context;
    makecontext(&fiber_context, fiber, 0);
    const std::uint64_t slow_walks = depot_stats().slow_walks;
    ASSERT_EQ(swapcontext(&main_context, &fiber_context), 0);
    EXPECT_EQ(depot_stats().slow_walks, slow_walks);
    EXPECT_TRUE(in_order(frames_of(from_fiber), {"here", "below", "below", "below", "below", "fiber"}))
        << text(frames_of(from_fiber));
    EXPECT_FALSE(view(from_fiber).flags.depth_reached);
}

trace_id from_handler = trace_id::none;

NOINLINE void on_signal(int) {
    from_handler = here(32);
    asm volatile("");
}

NOINLINE void raise_it() {
    raise(SIGUSR1);
    asm volatile("");
}

TEST(capture_trace, works_on_an_alternate_signal_stack) {
    constexpr std::size_t bytes = 256 * 1024;
    const auto memory = std::make_unique<char[]>(bytes);
    stack_t alternate{};
    alternate.ss_sp = memory.get();
    alternate.ss_size = bytes;
    stack_t before{};
    ASSERT_EQ(sigaltstack(&alternate, &before), 0);
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_ONSTACK;
    struct sigaction old {};
    ASSERT_EQ(sigaction(SIGUSR1, &action, &old), 0);
    raise_it();
    sigaction(SIGUSR1, &old, nullptr);
    sigaltstack(&before, nullptr);
    EXPECT_TRUE(in_order(frames_of(from_handler), {"here", "on_signal", "raise_it", "TestBody"}))
        << text(frames_of(from_handler));
}

NOINLINE trace_id entry(unsigned frames) {
    const trace_id id = pmr_debug::stack::capture_from_caller(frames);
    asm volatile("");
    return id;
}

TEST(capture_from_caller, leaves_out_the_function_it_stands_in) {
    const trace_id id = entry(8);
    const auto frames = frames_of(id);
    ASSERT_FALSE(frames.empty());
    EXPECT_TRUE(trace_test::is(frames[0], "TestBody")) << text(frames);
}

}  // namespace
