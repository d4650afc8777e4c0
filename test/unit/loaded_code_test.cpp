// Which file code came from, without the loader's lock.

#include "os/loaded_code.hpp"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <typeinfo>

namespace pmr_debug {

namespace {

std::uintptr_t address_of(const char* symbol) {
    return reinterpret_cast<std::uintptr_t>(::dlsym(RTLD_DEFAULT, symbol));
}

void here() {}

struct found {
    os::loaded_code code;
    std::string path;
};

template <class Find>
found find(Find how, std::uintptr_t address) {
    char path[1024];
    found f;
    f.code = how(address, std::span<char>(path));
    f.path = path;
    return f;
}

TEST(loaded_code, is_the_same_by_the_loaders_table_and_by_the_kernels) {
    for (const std::uintptr_t address : {reinterpret_cast<std::uintptr_t>(&here), address_of("qsort"),
                                         reinterpret_cast<std::uintptr_t>(&typeid(int))}) {
        const found a = find(os::find_loaded_code, address);
        const found b = find(os::read_loaded_code, address);
        EXPECT_EQ(a.code.start, b.code.start);
        EXPECT_EQ(a.code.base, b.code.base);
        EXPECT_EQ(a.code.dynamic, b.code.dynamic);
        EXPECT_EQ(a.code.program, b.code.program);
        // The loader's path may be a link's.
        EXPECT_TRUE(std::filesystem::equivalent(a.path, b.path)) << a.path << ' ' << b.path;
    }
    EXPECT_TRUE(find(os::find_loaded_code, reinterpret_cast<std::uintptr_t>(&here)).code.program);
}

TEST(loaded_code, none_is_where_no_file_is) {
    const int on_the_stack = 0;
    EXPECT_EQ(find(os::find_loaded_code, reinterpret_cast<std::uintptr_t>(&on_the_stack)).code.start, 0u);
    EXPECT_EQ(find(os::read_loaded_code, reinterpret_cast<std::uintptr_t>(&on_the_stack)).code.start, 0u);
    EXPECT_EQ(find(os::find_loaded_code, 0x1000).code.start, 0u);
}

TEST(loaded_code, knows_exported_functions_as_the_loader_does) {
    for (const char* const name : {"qsort", "memfd_create", "getenv"}) {
        const std::uintptr_t address = address_of(name);
        char path[1024];
        const os::loaded_code code = os::find_loaded_code(address, std::span<char>(path));
        char got[256];
        ASSERT_TRUE(os::exported_function(code, address + 1, got)) << name;
        Dl_info theirs{};
        ASSERT_NE(::dladdr(reinterpret_cast<void*>(address + 1), &theirs), 0);
        const void* const mine = ::dlsym(RTLD_DEFAULT, got);
        EXPECT_EQ(mine, theirs.dli_saddr) << name << " " << got;
    }
}

TEST(loaded_code, cuts_long_names) {
    const std::uintptr_t address = address_of("memfd_create");
    char path[8];
    const os::loaded_code code = os::find_loaded_code(address, std::span<char>(path));
    char got[4];
    ASSERT_TRUE(os::exported_function(code, address, got));
    EXPECT_EQ(std::string(got).size(), 3u);
    EXPECT_EQ(std::string(path).size(), 7u);
}

}  // namespace

}  // namespace pmr_debug
