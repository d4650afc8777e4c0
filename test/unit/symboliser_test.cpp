#include <pmr_debug/stack_trace.hpp>

#include "stack/names.hpp"
#include "support/trace_names.hpp"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <link.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace outer::pmr_debug_users {

__attribute__((noinline)) ::pmr_debug::trace_id named(int, const std::vector<int>&) {
    const ::pmr_debug::trace_id id = ::pmr_debug::capture_trace(16);
    asm volatile("");
    return id;
}

}  // namespace outer::pmr_debug_users

// Not local to this file: without optimisation each unit that has such functions claims them, though one copy is kept.
namespace shared_between_units {

template <class T>
__attribute__((noinline)) ::pmr_debug::trace_id in_a_template(T) {
    const ::pmr_debug::trace_id id = ::pmr_debug::capture_trace(16);
    asm volatile("");
    return id;
}
constexpr unsigned line_in_template = __LINE__ - 4;

struct has_members {
    __attribute__((noinline)) ::pmr_debug::trace_id in_a_member() {
        const ::pmr_debug::trace_id id = in_a_template(calls);
        asm volatile("" : "+r"(calls));
        return id;
    }
    static constexpr unsigned line_in_member = __LINE__ - 4;
    int calls = 0;
};

}  // namespace shared_between_units

extern "C" [[gnu::weak]] int __llvm_profile_runtime;  // NOLINT: the compiler's name

namespace {

using namespace pmr_debug;
using trace_test::frames_of;
using trace_test::in_order;
using trace_test::is;
using trace_test::text;

__attribute__((noinline)) trace_id plain() {
    const trace_id id = capture_trace(16);
    asm volatile("");
    return id;
}
constexpr unsigned line_in_plain = __LINE__ - 4;

__attribute__((always_inline)) inline trace_id inlined_twice() {
    const trace_id id = capture_trace(16);
    asm volatile("");
    return id;
}
__attribute__((always_inline)) inline trace_id inlined_once() {
    const trace_id id = inlined_twice();
    asm volatile("");
    return id;
}
__attribute__((noinline)) trace_id around_inlined() {
    const trace_id id = inlined_once();
    asm volatile("");
    return id;
}

TEST(resolve, finds_function_file_line_and_module) {
    const auto frames = frames_of(plain());
    ASSERT_GE(frames.size(), 2U);
    EXPECT_TRUE(is(frames[0], "plain()")) << text(frames);
    EXPECT_TRUE(frames[0].file.ends_with("symboliser_test.cpp")) << text(frames);
    EXPECT_EQ(frames[0].file.find("//"), std::string::npos) << text(frames);
    EXPECT_EQ(frames[0].line, line_in_plain);
    EXPECT_TRUE(frames[0].module.ends_with("symboliser_test")) << text(frames);
    EXPECT_NE(frames[0].module_offset, 0U);
    EXPECT_FALSE(frames[0].inlined);
    EXPECT_TRUE(in_order(frames, {"plain()", "TestBody", "main"})) << text(frames);
}

TEST(resolve, finds_file_and_line_of_templates_and_members) {
    shared_between_units::has_members object;
    const auto frames = frames_of(object.in_a_member());
    ASSERT_GE(frames.size(), 3U);
    EXPECT_TRUE(is(frames[0], "shared_between_units::in_a_template<int>(int)")) << text(frames);
    EXPECT_TRUE(frames[0].file.ends_with("symboliser_test.cpp")) << text(frames);
    EXPECT_EQ(frames[0].line, shared_between_units::line_in_template) << text(frames);
    EXPECT_TRUE(is(frames[1], "shared_between_units::has_members::in_a_member()")) << text(frames);
    EXPECT_EQ(frames[1].line, shared_between_units::has_members::line_in_member) << text(frames);
    // GoogleTest's own functions are a library without debug information; the test itself is not.
    EXPECT_NE(frames[2].line, 0U) << text(frames);
}

TEST(resolve, gives_demangled_names) {
    const auto frames = frames_of(outer::pmr_debug_users::named(1, {}));
    ASSERT_FALSE(frames.empty());
    EXPECT_TRUE(frames[0].function.starts_with("outer::pmr_debug_users::named(int, std::")) << text(frames);
    EXPECT_FALSE(frames[0].in_library);
}

TEST(resolve, shows_inlined_calls_innermost_first) {
    const auto frames = frames_of(around_inlined());
    ASSERT_GE(frames.size(), 3U);
    EXPECT_TRUE(is(frames[0], "inlined_twice")) << text(frames);
    EXPECT_TRUE(is(frames[1], "inlined_once")) << text(frames);
    EXPECT_TRUE(is(frames[2], "around_inlined")) << text(frames);
    EXPECT_TRUE(frames[0].inlined);
    EXPECT_TRUE(frames[1].inlined);
    EXPECT_FALSE(frames[2].inlined);
    EXPECT_EQ(frames[0].address, frames[2].address);
}

TEST(resolve, hands_out_nothing_for_no_trace) {
    EXPECT_TRUE(frames_of(trace_id::none).empty());
}

TEST(resolve, names_functions_of_a_library_loaded_late) {
    plain();
    frames_of(plain());  // tables have been made by now
    void* const library = dlopen(TRACE_PLUGIN, RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(library, nullptr) << dlerror();
    using function = trace_id (*)(trace_id(*)());
    const auto call = reinterpret_cast<function>(dlsym(library, "call_from_plugin"));
    ASSERT_NE(call, nullptr);
    const auto frames = frames_of(call(plain));
    EXPECT_TRUE(in_order(frames, {"plain()", "plugin_helper", "call_from_plugin", "TestBody", "main"})) << text(frames);
    EXPECT_TRUE(std::any_of(frames.begin(), frames.end(), [](const auto& f) {
        return is(f, "call_from_plugin") && f.module.ends_with("trace_plugin.so") && f.line != 0;
    })) << text(frames);
    dlclose(library);
    // Gone: what is left is the address.
    void* const again = dlopen(TRACE_PLUGIN, RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(again, nullptr);
    const auto call_again = reinterpret_cast<function>(dlsym(again, "call_from_plugin"));
    EXPECT_TRUE(in_order(frames_of(call_again(plain)), {"plain()", "plugin_helper", "call_from_plugin"}));
    dlclose(again);
}

/// Effects: loads a plugin, with \p before_resolving called then, and looks at the frames of a call through it: by name
/// only that which is exported is known, and of the other the place in its module.
template <class F>
void expect_names_of_exports_only(const char* path, const std::string& module, const F& before_resolving) {
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(library, nullptr) << dlerror();
    using function = trace_id (*)(trace_id(*)());
    const auto call = reinterpret_cast<function>(dlsym(library, "call_from_plugin"));
    ASSERT_NE(call, nullptr);
    const trace_id id = call(plain);
    before_resolving();
    const auto frames = frames_of(id);
    const auto in_plugin = [&](const auto& f) { return f.module.ends_with(module); };
    const auto inner = std::find_if(frames.begin(), frames.end(), in_plugin);
    ASSERT_NE(inner, frames.end()) << text(frames);
    ASSERT_GE(frames.end() - inner, 2) << text(frames);
    const auto outer = inner + 1;
    EXPECT_EQ(inner->function, "") << text(frames);
    EXPECT_EQ(outer->function, "call_from_plugin") << text(frames);
    Dl_info info{};
    ASSERT_NE(dladdr(reinterpret_cast<void*>(call), &info), 0);
    for (const auto& f : {*inner, *outer}) {
        EXPECT_TRUE(in_plugin(f)) << text(frames);
        EXPECT_EQ(f.file, "");
        EXPECT_EQ(f.line, 0U);
        EXPECT_EQ(f.module_offset, f.address - reinterpret_cast<std::uintptr_t>(info.dli_fbase));
    }
    EXPECT_TRUE(in_order(frames, {"plain()", "call_from_plugin", "main"})) << text(frames);
    dlclose(library);
}

/// True if clang counts what is executed: its version 14 exports a record for each function then, for which the dynamic
/// linker takes any address of the library.
bool counts_coverage() noexcept {
    const int* p = &__llvm_profile_runtime;
    asm volatile("" : "+r"(p));
    return p != nullptr;
}

TEST(resolve, without_debug_information_gives_exported_names_and_the_place_in_the_module) {
    if (counts_coverage()) {
        GTEST_SKIP() << "the names that the dynamic linker gives are those of coverage records";
    }
    expect_names_of_exports_only(TRACE_PLUGIN_STRIPPED, "trace_plugin_stripped.so", [] {});
}

TEST(resolve, without_the_modules_file_asks_the_dynamic_linker) {
    if (counts_coverage()) {
        GTEST_SKIP() << "the names that the dynamic linker gives are those of coverage records";
    }
    namespace files = std::filesystem;
    const files::path copy = files::temp_directory_path() / ("symboliser_test." + std::to_string(getpid()) + ".so");
    files::copy_file(TRACE_PLUGIN, copy, files::copy_options::overwrite_existing);
    // What another test has read of the same plug-in would serve if this came to lie in the same place; so its header
    // differs, in a field that the loader does not read: where sections are.
    std::fstream(copy, std::ios::in | std::ios::out | std::ios::binary).seekp(offsetof(ElfW(Ehdr), e_shoff)).put('x');
    expect_names_of_exports_only(copy.c_str(), copy.filename().string(), [&copy] { files::remove(copy); });
}

TEST(resolve, inside_its_own_visitor_gives_addresses_and_does_not_wait) {
    struct results {
        trace_id id;
        unsigned outer = 0;
        unsigned inner = 0;
        bool inner_has_module = true;
        bool inner_has_names = false;
    } r{plain()};
    resolve(
        r.id,
        [](const resolved_frame&, void* context) noexcept {
            auto& mine = *static_cast<results*>(context);
            ++mine.outer;
            resolve(
                mine.id,
                [](const resolved_frame& f, void* c) noexcept {
                    auto& m = *static_cast<results*>(c);
                    ++m.inner;
                    m.inner_has_names |= f.function[0] != '\0';
                    m.inner_has_module &= f.module[0] != '\0' && f.address != 0;
                },
                context);
        },
        &r);
    EXPECT_GE(r.outer, view(r.id).frames.size());
    EXPECT_EQ(r.inner, r.outer * view(r.id).frames.size());
    EXPECT_TRUE(r.inner_has_module);
    EXPECT_FALSE(r.inner_has_names);
}

TEST(resolve, in_the_child_of_a_fork_does_not_wait_for_the_parents_threads) {
    static trace_id id;
    static int status;
    id = plain();
    status = -1;
    resolve(
        id,
        [](const resolved_frame&, void*) noexcept {
            if (status != -1) {
                return;
            }
            const pid_t child = fork();
            if (child == 0) {
                alarm(20);
                unsigned frames = 0;
                resolve(
                    id, [](const resolved_frame&, void* n) noexcept { ++*static_cast<unsigned*>(n); }, &frames);
                _exit(frames == view(id).frames.size() ? 0 : 1);
            }
            waitpid(child, &status, 0);
        },
        nullptr);
    EXPECT_EQ(status, 0);
}

TEST(resolve, serves_threads_at_once) {
    const trace_id id = plain();
    const auto expected = text(frames_of(id));
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&] {
            for (int round = 0; round < 20; ++round) {
                EXPECT_EQ(text(frames_of(id)), expected);
            }
        });
    }
    for (auto& t : threads) {
        t.join();
    }
}

TEST(library_frames, are_known_by_their_names) {
    using stack::is_library_function;
    for (const char* name : {
             "pmr_debug::capture_trace(unsigned int)",
             "pmr_debug::(anonymous namespace)::f()",
             "pmr_debug::basic_page_resource<pmr_debug::policy{(pmr_debug::threading)2}>::do_allocate(unsigned long, "
             "unsigned long)",
             "void* pmr_debug::detail::x<int (*)(char)>(int)",
             "std::pair<int, char> pmr_debug::f<1>(int)",
             "decltype(auto) pmr_debug::f<1>(int)",
             "decltype ((f)(1)) pmr_debug::f<1>(int)",
             "non-virtual thunk to pmr_debug::r::do_allocate(unsigned long, unsigned long)",
             "virtual thunk to pmr_debug::r::~r()",
             "pmr_debug::r::operator bool() const",
             "pmr_debug::r::f()::{lambda(int)#1}::operator()(int) const",
             "std::pmr::memory_resource::allocate(unsigned long, unsigned long)",
             "std::pmr::memory_resource::deallocate(void*, unsigned long, unsigned long)",
         }) {
        EXPECT_TRUE(is_library_function(name)) << name;
    }
    for (const char* name : {
             "",
             "main",
             "my::pmr_debug::x()",
             "pmr_debug_test::x()",
             "(anonymous namespace)::pmr_debug::x()",
             "void my::pmr_debug::f<int>()",
             "std::vector<int, pmr_debug::a>::push_back(int)",
             "void f<pmr_debug::x>(pmr_debug::x)",
             "void std::vector<int, pmr_debug::a>::emplace_back<int>(int&&)",
             "f(pmr_debug::x const&)",
             "operator<<(std::ostream&, pmr_debug::x)",
             "std::pmr::polymorphic_allocator<int>::allocate(unsigned long)",
             "pmr_debug::x my::make<int>()",
         }) {
        EXPECT_FALSE(is_library_function(name)) << name;
    }
}

TEST(source_path, has_no_folder_before_an_absolute_path) {
    EXPECT_STREQ(stack::source_path("/no such folder/build//home/somebody/main.cpp"), "/home/somebody/main.cpp");
    EXPECT_STREQ(stack::source_path("/home/somebody/main.cpp"), "/home/somebody/main.cpp");
    EXPECT_STREQ(stack::source_path("../main.cpp"), "../main.cpp");
    EXPECT_STREQ(stack::source_path("//main.cpp"), "//main.cpp");
    EXPECT_STREQ(stack::source_path("/proc//self/stat"), "/proc//self/stat");  // is there
    EXPECT_EQ(stack::source_path(nullptr), nullptr);
}

TEST(demangle, cuts_what_does_not_fit) {
    char buffer[16];
    const std::string name = stack::demangle("_ZN5outer15pmr_debug_users5namedEi", buffer);
    EXPECT_EQ(name, "outer::pmr_debu");
    EXPECT_STREQ(stack::demangle("main", buffer), "main");
    EXPECT_STREQ(stack::demangle("_Znonsense", buffer), "_Znonsense");
    const std::string endless = "_Z" + std::to_string(100'000) + std::string(100'000, 'a') + "v";
    EXPECT_EQ(stack::demangle(endless.c_str(), buffer), endless.c_str());
}

}  // namespace
