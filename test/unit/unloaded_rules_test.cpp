// Rules of code that is unloaded, and of other code in its place.

#include "stack/capture.hpp"
#include "stack/rules.hpp"
#include "stack/unwinder.hpp"

#include <pmr_debug/stack_trace.hpp>

#include <gtest/gtest.h>

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace {

using namespace pmr_debug;

std::atomic<unsigned> compared{0};
std::atomic<unsigned> wrong{0};

/// A capture says what the unwinder says.
[[gnu::noinline]] void compare() {
    const auto frame = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
    stack::walk truth;
    stack::unwind(frame, stack::max_walk, truth);
    for (const unsigned most : {8U, 3U, 24U}) {
        const trace_view v = view(stack::capture(most, frame));
        const bool same = v.frames.size() <= truth.depth && v.frames.size() >= std::min(3U, truth.depth) &&
                          std::equal(v.frames.begin(), v.frames.end(), truth.frames) && !v.flags.cut_short;
        wrong += same ? 0 : 1;
    }
    ++compared;
}

using caller = void (*)(void (*)());

/// Loads a plug-in, calls through it \p times, and unloads it. Returns: where its function was.
[[gnu::noinline]] std::uintptr_t use(const char* path, int times) {
    void* const plugin = ::dlopen(path, RTLD_NOW | RTLD_LOCAL);
    EXPECT_NE(plugin, nullptr) << ::dlerror();
    if (plugin == nullptr) {
        return 0;
    }
    const auto call = reinterpret_cast<caller>(::dlsym(plugin, "plugin_call"));
    for (int i = 0; i < times; ++i) {
        call(compare);
    }
    ::dlclose(plugin);
    return reinterpret_cast<std::uintptr_t>(call);
}

TEST(unloaded_rules, are_not_those_of_what_comes_to_the_same_place) {
    std::set<std::uintptr_t> first;
    std::set<std::uintptr_t> second;
    for (int i = 0; i < 20; ++i) {
        first.insert(use(PLUGIN_SMALL, 3));
        second.insert(use(PLUGIN_LARGE, 3));
    }
    std::vector<std::uintptr_t> both;
    std::set_intersection(first.begin(), first.end(), second.begin(), second.end(), std::back_inserter(both));
    EXPECT_FALSE(both.empty()) << "the loader put them in different places, which shows nothing";
    EXPECT_EQ(compared.load(), 120U);
    EXPECT_EQ(wrong.load(), 0U);
}

trace_id from_plugin = trace_id::none;
[[gnu::noinline]] void capture_in_plugin() {
    from_plugin = capture_trace(8);
    asm volatile("");
}

struct shown_frame {
    std::string module;
    std::string function;
    std::uintptr_t offset = 0;
    bool unloaded = false;
    bool changed = false;
};
std::vector<shown_frame> frames_shown(trace_id id) {
    std::vector<shown_frame> all;
    resolve(
        id,
        [](const resolved_frame& f, void* to) noexcept {
            static_cast<std::vector<shown_frame>*>(to)->push_back(
                {f.module, f.function, f.module_offset, f.unloaded, f.changed});
        },
        &all);
    return all;
}

TEST(unloaded_traces, name_the_file_that_was_there) {
    trace_id ids[2];
    std::uintptr_t places[2];
    const char* const paths[] = {PLUGIN_SMALL, PLUGIN_LARGE};
    for (int i = 0; i < 2; ++i) {
        void* const plugin = ::dlopen(paths[i], RTLD_NOW | RTLD_LOCAL);
        ASSERT_NE(plugin, nullptr) << ::dlerror();
        const auto call = reinterpret_cast<caller>(::dlsym(plugin, "plugin_call"));
        call(capture_in_plugin);
        ids[i] = from_plugin;
        places[i] = reinterpret_cast<std::uintptr_t>(call);
        const std::vector<shown_frame> loaded = frames_shown(ids[i]);
        ASSERT_GE(loaded.size(), 3U);
        EXPECT_EQ(loaded[1].function, "plugin_call");
        EXPECT_EQ(loaded[1].module, paths[i]);
        EXPECT_FALSE(loaded[1].unloaded);
        if (i == 1 && places[0] == places[1]) {  // the first one's place is taken, and its name is not that of this one
            EXPECT_TRUE(frames_shown(ids[0])[1].unloaded);
        }
        ::dlclose(plugin);
    }
    EXPECT_EQ(places[0], places[1]) << "the loader put them in different places, which shows less";
    EXPECT_NE(ids[0], ids[1]) << "call paths of different files";
    for (int i = 0; i < 2; ++i) {
        const std::vector<shown_frame> gone = frames_shown(ids[i]);
        ASSERT_GE(gone.size(), 3U);
        EXPECT_EQ(gone[1].module, paths[i]);
        EXPECT_EQ(gone[1].function, "");
        EXPECT_TRUE(gone[1].unloaded);
        EXPECT_LT(gone[1].offset, std::uintptr_t{1} << 20);
        EXPECT_FALSE(gone[0].unloaded);
        EXPECT_FALSE(gone[2].unloaded);
    }
}

// Who resolves has the tables, and whoever asks meanwhile gets no names: nor the file that lies there now.
TEST(unloaded_traces, name_the_file_that_was_there_without_tables_too) {
    const auto capture_in = [](const char* path) {
        void* const plugin = ::dlopen(path, RTLD_NOW | RTLD_LOCAL);
        EXPECT_NE(plugin, nullptr) << ::dlerror();
        reinterpret_cast<caller>(::dlsym(plugin, "plugin_call"))(capture_in_plugin);
        return plugin;
    };
    ::dlclose(capture_in(PLUGIN_SMALL));
    struct inner {
        trace_id gone;
        std::vector<shown_frame> shown;
    } asked{from_plugin, {}};
    void* const other = capture_in(PLUGIN_LARGE);
    resolve(
        from_plugin,
        [](const resolved_frame&, void* to) noexcept {
            auto& a = *static_cast<inner*>(to);
            a.shown = frames_shown(a.gone);
        },
        &asked);
    ASSERT_GE(asked.shown.size(), 3U);
    EXPECT_EQ(asked.shown[0].function, "");
    EXPECT_EQ(asked.shown[1].module, PLUGIN_SMALL);
    EXPECT_TRUE(asked.shown[1].unloaded);
    EXPECT_FALSE(asked.shown[0].unloaded);
    ::dlclose(other);
}

TEST(unloaded_traces, take_no_names_from_a_file_that_was_built_anew) {
    char folder[] = "/tmp/pluginXXXXXX";
    ASSERT_NE(::mkdtemp(folder), nullptr);
    const std::filesystem::path path = std::filesystem::path(folder) / "plugin.so";
    std::filesystem::copy_file(PLUGIN_SMALL, path);
    void* const plugin = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(plugin, nullptr) << ::dlerror();
    reinterpret_cast<caller>(::dlsym(plugin, "plugin_call"))(capture_in_plugin);
    std::filesystem::remove(path);
    std::filesystem::copy_file(PLUGIN_LARGE, path);
    const std::vector<shown_frame> shown = frames_shown(from_plugin);
    ASSERT_GE(shown.size(), 3U);
    EXPECT_TRUE(shown[1].changed);
    EXPECT_EQ(shown[1].module, path);
    EXPECT_EQ(shown[1].function, "plugin_call") << "the loaded one's own symbols";
    EXPECT_FALSE(shown[0].changed);
    ::dlclose(plugin);
    std::filesystem::remove_all(folder);
}

[[gnu::noinline]] void deeper(int levels) {
    if (levels == 0) {
        compare();
    } else {
        deeper(levels - 1);
    }
    asm volatile("");
}

TEST(unloaded_rules, hold_while_other_threads_load_and_unload) {
    constexpr auto length = std::chrono::milliseconds(500);
    const auto end = std::chrono::steady_clock::now() + length;
    wrong = 0;
    std::vector<std::thread> threads;
    for (int n = 0; n < 4; ++n) {
        threads.emplace_back([n, end] {
            for (int i = 0; std::chrono::steady_clock::now() < end; ++i) {
                if (n < 2) {
                    use((i + n) % 2 == 0 ? PLUGIN_SMALL : PLUGIN_LARGE, 2);
                } else {
                    deeper(i % 20);
                }
            }
        });
    }
    for (auto& t : threads) {
        t.join();
    }
    EXPECT_EQ(wrong.load(), 0U);
}

}  // namespace
